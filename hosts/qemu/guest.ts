import { readFileSync } from "node:fs";
import { MigrationError } from "../../base/errors.ts";
import type { Block } from "../../engine/block.ts";
import { ask, askList, property } from "./answer.ts";
import { type Backend, findBackends } from "./backend.ts";
import { missingOf, readCapabilities } from "./capabilities.ts";
import type { GuestDescription } from "./description.ts";
import { processOfThread, type QemuProcess } from "./process.ts";
import { isObject, type Qmp } from "./qmp.ts";
import { findRam } from "./ram.ts";

/** What a QEMU runs, and how it can be moved. */
export interface Guest {
  readonly blocks: readonly Block[];
  readonly description: GuestDescription;
  /** Of the virtual processors. */
  readonly threadIds: readonly number[];
  /** QEMU's process; undefined where this user cannot see it. */
  readonly process: QemuProcess | undefined;
  readonly problems: readonly string[];
}

export interface GuestQuery {
  readonly access: "read" | "write";
  /** The capabilities without which it cannot be moved. */
  readonly needs: readonly string[];
}

/** Looks at a QEMU, without touching anything. */
export async function inspect(qmp: Qmp, { access, needs }: GuestQuery): Promise<Guest> {
  const missing = missingOf(await readCapabilities(qmp), needs);
  const cpus = await askList(qmp, "query-cpus-fast");
  const threadIds = cpus.map((cpu) => cpu.number("thread-id"));
  const owner = processOfThread(threadIds[0] ?? 0);
  const backends = await findBackends(qmp);
  const ram = findRam(backends, { pid: owner?.pid, access });
  return {
    blocks: ram.blocks,
    description: {
      machine: await machineOf(qmp),
      version: await versionOf(qmp),
      cpus: cpus.length,
      backends: backends.map(({ id, sizeBytes, address }) => ({ id, sizeBytes, address })),
      ownBlocks: await ownBlocksOf(qmp, backends),
      kernel: kernelId(),
      files: Object.fromEntries(ram.files),
    },
    threadIds,
    process: owner,
    problems: [
      ...missing.map((name) => `this QEMU lacks migration capability "${name}": use 7.2 or newer`),
      ...ram.problems,
    ],
  };
}

/** Throws GUEST_UNSUITABLE if there are any. */
export function refuse(problems: readonly string[]): void {
  if (problems.length > 0) throw new MigrationError("GUEST_UNSUITABLE", { problems });
}

const MACHINE_SUFFIX = "-machine";

/** Versioned, as in `pc-i440fx-7.2`, whatever alias it was started by. */
async function machineOf(qmp: Qmp): Promise<string> {
  const type = await property(qmp, "/machine", "type");
  const name = typeof type === "string" ? type : "unknown";
  return name.endsWith(MACHINE_SUFFIX) ? name.slice(0, -MACHINE_SUFFIX.length) : name;
}

async function versionOf(qmp: Qmp): Promise<string> {
  const { qemu } = (await qmp.execute("query-version")) as { readonly qemu?: unknown };
  if (!isObject(qemu)) return "unknown";
  return [qemu["major"], qemu["minor"], qemu["micro"]].join(".");
}

/** Names of more blocks than these would not fit a description. */
const OWN_BLOCKS_MAX = 64;

/**
 * The blocks that QEMU moves itself: ROMs, video memory. A destination that lacks one would fail
 * when it loads them, which is late. Only a table for people names them; it may be missing.
 */
async function ownBlocksOf(qmp: Qmp, backends: readonly Backend[]): Promise<readonly string[]> {
  try {
    const table = (await ask(qmp, "x-query-ramblock")).text("human-readable-text");
    const names = table.split("\n").flatMap((line) => {
      return /^\s*(\S.*?)\s+\d+ [KMGT]?i?B\s+0x/.exec(line)?.[1] ?? [];
    });
    const ids = new Set(backends.flatMap(({ id }) => [id, `/objects/${id}`]));
    return names.filter((name) => !ids.has(name)).slice(0, OWN_BLOCKS_MAX);
  } catch (error) {
    if (error instanceof MigrationError && error.code === "HYPERVISOR_REFUSED") return [];
    throw error;
  }
}

/** The same for all QEMUs that could have the very same file, and for no others. */
function kernelId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "";
  }
}
