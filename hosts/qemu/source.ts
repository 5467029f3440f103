import type { Block } from "../../engine/block.ts";
import { createDirtyLog, type DirtyLog } from "../../engine/dirty-log.ts";
import type { DeviceSection, DeviceTerms, SourceHost } from "../../engine/host.ts";
import { orBits } from "../../workers/dirty-words.ts";
import { ask } from "./answer.ts";
import { MigrationSettings, SOURCE_NEEDS } from "./capabilities.ts";
import { encodeDescription } from "./description.ts";
import { type Guest, inspect, refuse } from "./guest.ts";
import { Outgoing } from "./outgoing.ts";
import { Qmp } from "./qmp.ts";
import { encodeRunState, runOn } from "./run-state.ts";

/** Some 200 to 320 KiB without a display, as measured with 7.2. */
const DEVICE_BYTES_USUAL = 300_000;

/** States of a migration that is over, or never was. */
const IDLE: ReadonlySet<string> = new Set(["none", "completed", "failed", "cancelled"]);

/** The name of the section with what QEMU wrote. */
export const DEVICES_SECTION = "qemu";
/** The name of the section that says whether the guest ran. */
export const RUN_STATE_SECTION = "qemu-run-state";

/**
 * The guest of an unmodified QEMU whose RAM lies in shared files. The engine moves the RAM; QEMU
 * stops the guest and saves its devices by a migration of its own, into a local socket.
 */
export class QemuSource implements SourceHost {
  readonly blocks: readonly Block[];
  readonly description: string;
  readonly deviceBytes = DEVICE_BYTES_USUAL;
  readonly #qmp: Qmp;
  readonly #guest: Guest;
  readonly #settings: MigrationSettings;
  #logs: readonly DirtyLog[] = [];
  #isPauseWanted = false;
  #hasRun = false;
  #pausing: Promise<void> = Promise.resolve();
  #restoring: Promise<void> = Promise.resolve();
  #outgoing: Outgoing | null = null;

  /**
   * Connects to QEMU's QMP socket and looks at the guest, without touching anything. Throws
   * HYPERVISOR_UNREACHABLE, or GUEST_UNSUITABLE with everything that is in the way.
   */
  static async open(path: string): Promise<QemuSource> {
    const qmp = await Qmp.connect(path);
    try {
      const guest = await inspect(qmp, { access: "read", needs: SOURCE_NEEDS });
      refuse([...(await obstacles(qmp)), ...guest.problems]);
      return new QemuSource(qmp, guest);
    } catch (error) {
      qmp.close();
      throw error;
    }
  }

  private constructor(qmp: Qmp, guest: Guest) {
    this.#qmp = qmp;
    this.#guest = guest;
    this.#settings = new MigrationSettings(qmp, SOURCE_NEEDS);
    this.blocks = guest.blocks;
    this.description = encodeDescription(guest.description);
  }

  /** Of the guest's virtual processors. */
  get threadIds(): readonly number[] {
    return this.#guest.threadIds;
  }

  async startDirtyLog(): Promise<readonly DirtyLog[]> {
    refuse(await obstacles(this.#qmp)); // It may be long since it was looked at.
    this.#logs = this.blocks.map((block) => createDirtyLog(block.name, block));
    return this.#logs;
  }

  async stopDirtyLog(): Promise<void> {
    this.#logs = [];
  }

  async pause(terms: DeviceTerms): Promise<void> {
    this.#isPauseWanted = true;
    const pausing = this.#pause(terms);
    this.#pausing = pausing.catch(() => {});
    await pausing;
    for (const log of this.#logs) for (const word of log.words.keys()) orBits(log, word, -1);
  }

  async saveDevices(terms: DeviceTerms): Promise<readonly DeviceSection[]> {
    const outgoing = this.#outgoing;
    if (outgoing === null) throw new Error("the guest is not paused");
    const bytes = await outgoing.finish(terms);
    // Not waited for: the guest stands still meanwhile, and nothing depends on it.
    this.#restoring = this.#settings.restore().catch(() => {});
    return [
      { name: DEVICES_SECTION, bytes },
      { name: RUN_STATE_SECTION, bytes: encodeRunState({ hasRun: this.#hasRun }) },
    ];
  }

  async resume(): Promise<void> {
    this.#isPauseWanted = false;
    const outgoing = this.#outgoing;
    await outgoing?.cancel();
    await this.#pausing;
    await this.#restoring;
    this.#outgoing = null;
    if (outgoing !== null && this.#hasRun) await runOn(this.#qmp);
    await this.#settings.restore();
  }

  close(): void {
    this.#qmp.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #pause(terms: DeviceTerms): Promise<void> {
    this.#hasRun = (await ask(this.#qmp, "query-status")).flag("running");
    this.#checkWanted();
    await this.#settings.apply();
    this.#checkWanted();
    this.#outgoing = new Outgoing(this.#qmp, this.#guest.process);
    await this.#outgoing.begin(terms);
  }

  #checkWanted(): void {
    if (!this.#isPauseWanted) throw new Error("the guest shall run on");
  }
}

/** What must not be, at the moment, for the guest to leave. */
async function obstacles(qmp: Qmp): Promise<string[]> {
  const problems: string[] = [];
  const state = (await ask(qmp, "query-status")).text("status");
  if (state === "inmigrate") problems.push("it waits for a guest itself: send from the other one");
  if (state === "postmigrate") {
    problems.push(
      'its guest was stopped by a migration before: if it surely runs nowhere else, "cont" it first',
    );
  }
  const migration = await ask(qmp, "query-migrate");
  const status = migration.optionalText("status") ?? "none";
  if (!IDLE.has(status)) {
    problems.push(`its guest is being migrated already (${status}): wait, or cancel that`);
  }
  const reasons = migration.texts("blocked-reasons");
  problems.push(
    ...reasons.map((reason) => `QEMU cannot migrate it: ${reason}: remove that device`),
  );
  return problems;
}
