import { MigrationError } from "../../base/errors.ts";
import { askList } from "./answer.ts";
import type { Qmp } from "./qmp.ts";

/** QEMU leaves shared RAM to us, waits before it hands over, and tells how far it is. */
export const SOURCE_NEEDS = ["x-ignore-shared", "pause-before-switchover", "events"] as const;

/** Disks stay the source's until `cont`: a load must not open them before COMMIT. */
export const DESTINATION_NEEDS = ["x-ignore-shared", "events", "late-block-activate"] as const;

/**
 * What does not go with these, or makes no sense for some hundred KiB over a local socket. It is
 * off for as long as a migration takes.
 */
const IN_THE_WAY: ReadonlySet<string> = new Set([
  "auto-converge",
  "background-snapshot",
  "block",
  "compress",
  "dirty-limit",
  "mapped-ram",
  "multifd",
  "postcopy-preempt",
  "postcopy-ram",
  "rdma-pin-all",
  "release-ram",
  "return-path",
  "switchover-ack",
  "x-colo",
  "xbzrle",
  "zero-blocks",
  "zero-copy-send",
]);

type Settings = ReadonlyMap<string, boolean>;

/** What this QEMU has, and which of it is on. */
export async function readCapabilities(qmp: Qmp): Promise<Settings> {
  const rows = await askList(qmp, "query-migrate-capabilities");
  return new Map(rows.map((row) => [row.text("capability"), row.flag("state")]));
}

/** What must change so that these are on and nothing is in their way. */
export function changesFor(found: Settings, needs: readonly string[]): Map<string, boolean> {
  const changes = new Map<string, boolean>();
  for (const [name, isOn] of found) {
    const wanted = needs.includes(name) || (isOn && !IN_THE_WAY.has(name));
    if (wanted !== isOn) changes.set(name, wanted);
  }
  return changes;
}

/** Which needs this QEMU cannot meet. */
export function missingOf(found: Settings, needs: readonly string[]): string[] {
  return needs.filter((name) => !found.has(name));
}

/**
 * The capabilities and parameters of QEMU's migration that are changed for ours, and put back as
 * they were found.
 */
export class MigrationSettings {
  readonly #qmp: Qmp;
  readonly #needs: readonly string[];
  #changed: ReadonlyMap<string, boolean> = new Map();
  #credentials = "";

  constructor(qmp: Qmp, needs: readonly string[]) {
    this.#qmp = qmp;
    this.#needs = needs;
  }

  async apply(): Promise<void> {
    const found = await readCapabilities(this.#qmp);
    const changes = changesFor(found, this.#needs);
    // Noted first: half of it may have taken effect when this fails.
    this.#changed = new Map(Array.from(changes.keys(), (name) => [name, found.get(name) === true]));
    try {
      await this.#set(changes);
    } catch (error) {
      // What QEMU refuses it refuses as a whole.
      const isRefused = error instanceof MigrationError && error.code === "HYPERVISOR_REFUSED";
      if (isRefused) this.#changed = new Map();
      throw error;
    }
    await this.#suspendTls();
  }

  /** Harmless when nothing was changed. */
  async restore(): Promise<void> {
    const [changed, credentials] = [this.#changed, this.#credentials];
    this.#changed = new Map();
    this.#credentials = "";
    await this.#set(changed);
    if (credentials !== "") {
      await this.#qmp.execute("migrate-set-parameters", { "tls-creds": credentials });
    }
  }

  async #set(changes: ReadonlyMap<string, boolean>): Promise<void> {
    if (changes.size === 0) return;
    const capabilities = Array.from(changes, ([capability, state]) => ({ capability, state }));
    await this.#qmp.execute("migrate-set-capabilities", { capabilities });
  }

  /** It would apply to our local socket, too, where nobody speaks it. */
  async #suspendTls(): Promise<void> {
    const parameters = await this.#qmp.execute("query-migrate-parameters");
    const { "tls-creds": credentials = "" } = parameters as { "tls-creds"?: string };
    if (credentials === "") return;
    this.#credentials = credentials;
    await this.#qmp.execute("migrate-set-parameters", { "tls-creds": "" });
  }
}
