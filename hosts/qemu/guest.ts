import { MigrationError } from "../../base/errors.ts";
import { isObject } from "../../base/object.ts";
import type { Block } from "../../engine/block.ts";
import { kernelId } from "../files-taken.ts";
import { askList, property } from "./answer.ts";
import { type Backend, findBackends } from "./backend.ts";
import { missingOf, readCapabilities } from "./capabilities.ts";
import type { GuestDescription } from "./description.ts";
import { processOfThread, type QemuProcess } from "./process.ts";
import type { Qmp } from "./qmp.ts";
import { findRam, GUEST_PAGE_BYTES } from "./ram.ts";
import { type RamRow, ramTableOf } from "./ram-table.ts";

/** What a QEMU runs, and how it can be moved. */
export interface Guest {
  readonly blocks: readonly Block[];
  readonly description: GuestDescription;
  /** The backends in pages larger than the guest's, as those in hugetlbfs are. */
  readonly huge: readonly HugeBackend[];
  /** Of the virtual processors. */
  readonly threadIds: readonly number[];
  /** QEMU's process; undefined where this user cannot see it. */
  readonly process: QemuProcess | undefined;
  readonly problems: readonly string[];
}

export interface HugeBackend {
  readonly id: string;
  /** Of its file. */
  readonly pageBytes: number;
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
  const table = await ramTableOf(qmp);
  return {
    blocks: ram.blocks,
    description: {
      machine: await machineOf(qmp),
      version: await versionOf(qmp),
      cpus: cpus.length,
      backends: backends.map(({ id, sizeBytes, address }) => ({ id, sizeBytes, address })),
      ownBlocks: ownBlocksOf(table, backends),
      kernel: kernelId(),
      files: Object.fromEntries(ram.files),
    },
    huge: hugeBackends(table, backends),
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
 * when it loads them, which is late.
 */
function ownBlocksOf(table: readonly RamRow[], backends: readonly Backend[]): readonly string[] {
  const ids = new Set(backends.flatMap(({ id }) => namesOf(id)));
  const names = table.map(({ name }) => name);
  return names.filter((name) => !ids.has(name)).slice(0, OWN_BLOCKS_MAX);
}

/** What lies in larger pages than the guest's. */
function hugeBackends(table: readonly RamRow[], backends: readonly Backend[]): HugeBackend[] {
  return backends.flatMap(({ id }) => {
    const row = table.find(({ name }) => namesOf(id).includes(name));
    return row === undefined || row.pageBytes <= GUEST_PAGE_BYTES
      ? []
      : [{ id, pageBytes: row.pageBytes }];
  });
}

/** What a backend's block of memory is called, by old machines and by others. */
function namesOf(id: string): readonly string[] {
  return [id, `/objects/${id}`];
}
