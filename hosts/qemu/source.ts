import { formatBytes } from "../../base/units.ts";
import type { Block } from "../../engine/block.ts";
import type { ScanLog } from "../../engine/dirty-log.ts";
import type { DeviceSection, DeviceTerms, SourceHost } from "../../engine/host.ts";
import type { ParameterOptions } from "../../engine/parameters.ts";
import { ask } from "./answer.ts";
import { MigrationSettings, SOURCE_NEEDS } from "./capabilities.ts";
import { type CpuQuotaOpening, openCpuQuota } from "./cpu-quota.ts";
import { encodeDescription } from "./description.ts";
import { type Guest, type HugeBackend, inspect, refuse } from "./guest.ts";
import { migrationUnderWay } from "./migration-status.ts";
import { Outgoing } from "./outgoing.ts";
import { Qmp } from "./qmp.ts";
import { GUEST_PAGE_BYTES } from "./ram.ts";
import { announce, encodeRunState, runOn, standStill } from "./run-state.ts";
import { liftLeftQuotas } from "./stale-quotas.ts";

/** Some 200 to 320 KiB without a display, as measured with 7.2. */
const DEVICE_BYTES_USUAL = 300_000;

/** The name of the section with what QEMU wrote. */
export const DEVICES_SECTION = "qemu";
/** The name of the section that says whether the guest ran. */
export const RUN_STATE_SECTION = "qemu-run-state";

export interface QemuSourceOptions {
  /** Whether the guest may have to be slowed down, for `auto-converge`; it is tried at once. */
  readonly throttle?: boolean;
}

/**
 * A QEMU's guest shares its host's link with other guests, and runs while its memory moves: with
 * `auto`, bytes count as well as time.
 */
const PREFERENCES: ParameterOptions = { autoExtraTimePercent: 1000 };

/**
 * The guest of an unmodified QEMU whose RAM lies in shared files. The engine moves the RAM; QEMU
 * stops the guest and saves its devices by a migration of its own, into a local socket.
 */
export class QemuSource implements SourceHost {
  readonly blocks: readonly Block[];
  readonly description: string;
  readonly deviceBytes = DEVICE_BYTES_USUAL;
  readonly dirtyLog = "scan";
  readonly preferences = PREFERENCES;
  /** Absent where it was not wanted or cannot be; see `notThrottled`. */
  readonly throttle?: (percent: number) => Promise<void>;
  /** Why there is no `throttle`, where it was wanted. */
  readonly notThrottled?: string;
  /** What was found, and what was mended, when this was opened, in sentences. */
  readonly notes: readonly string[];
  readonly #qmp: Qmp;
  readonly #guest: Guest;
  readonly #settings: MigrationSettings;
  #isPauseWanted = false;
  #hasRun = false;
  #pausing: Promise<void> = Promise.resolve();
  #restoring: Promise<void> = Promise.resolve();
  #outgoing: Outgoing | null = null;

  /**
   * Connects to QEMU's QMP socket and looks at the guest. Touches nothing of it, but lifts what an
   * engine that was killed has left on any guest, also where this one cannot leave. Throws
   * HYPERVISOR_UNREACHABLE, or GUEST_UNSUITABLE with everything that is in the way.
   */
  static async open(path: string, options: QemuSourceOptions = {}): Promise<QemuSource> {
    const notes = await liftLeftQuotas();
    const qmp = await Qmp.connect(path);
    try {
      const guest = await inspect(qmp, { access: "read", needs: SOURCE_NEEDS });
      refuse([...(await obstacles(qmp)), ...guest.problems]);
      const quota = options.throttle === true ? await quotaOf(guest) : null;
      return new QemuSource(qmp, guest, { quota, notes });
    } catch (error) {
      qmp.close();
      throw error;
    }
  }

  private constructor(qmp: Qmp, guest: Guest, { quota, notes }: Opening) {
    this.#qmp = qmp;
    this.#guest = guest;
    this.#settings = new MigrationSettings(qmp, SOURCE_NEEDS);
    this.blocks = guest.blocks;
    this.description = encodeDescription(guest.description);
    this.notes = [...notes, ...guest.huge.map(noteOfHuge)];
    if (quota?.kind === "quota") this.throttle = (percent) => quota.quota.set(percent);
    if (quota?.kind === "unavailable") this.notThrottled = quota.reason;
  }

  /** Of the guest's virtual processors. */
  get threadIds(): readonly number[] {
    return this.#guest.threadIds;
  }

  /** When QEMU stopped the guest to hand it over. */
  get stoppedAtMs(): number | undefined {
    return this.#outgoing?.status.stoppedAtMs;
  }

  /** QEMU tells nobody what its guest writes: the engine looks for itself. */
  async startDirtyLog(): Promise<readonly ScanLog[]> {
    refuse(await obstacles(this.#qmp)); // It may be long since it was looked at.
    const { process } = this.#guest;
    const presence = process === undefined ? {} : { presence: { pids: [process.pid] } };
    return this.blocks.map(({ name }) => ({ kind: "scan", block: name, ...presence }));
  }

  async stopDirtyLog(): Promise<void> {}

  async pause(terms: DeviceTerms): Promise<void> {
    this.#isPauseWanted = true;
    const pausing = this.#pause(terms);
    this.#pausing = pausing.catch(() => {});
    await pausing;
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
    if (outgoing !== null) await this.#restoreRunState(outgoing);
    await this.#settings.restore();
  }

  async close(): Promise<void> {
    await this.#restoring;
    // After COMMIT the engine asks for nothing more; what cannot be lifted, the next one finds.
    await this.throttle?.(0).catch(() => {});
    this.#qmp.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #pause(terms: DeviceTerms): Promise<void> {
    this.#hasRun = (await ask(this.#qmp, "query-status")).flag("running");
    this.#checkWanted();
    await this.#settings.apply();
    this.#checkWanted();
    this.#outgoing = new Outgoing(this.#qmp, this.#guest.process);
    await this.#outgoing.begin(terms);
  }

  async #restoreRunState(outgoing: Outgoing): Promise<void> {
    if (!this.#hasRun) return await standStill(this.#qmp);
    await runOn(this.#qmp);
    // The destination has told the network that the guest is there; it is not.
    if (outgoing.isFinished) await announce(this.#qmp);
  }

  #checkWanted(): void {
    if (!this.#isPauseWanted) throw new Error("the guest shall run on");
  }
}

interface Opening {
  readonly quota: CpuQuotaOpening | null;
  readonly notes: readonly string[];
}

/** What its user may want to know: huge pages are faster, and need not be there where it arrives. */
function noteOfHuge({ id, pageBytes }: HugeBackend): string {
  const [pages, travelling] = [formatBytes(pageBytes), formatBytes(GUEST_PAGE_BYTES)];
  return `RAM backend "${id}" lies in pages of ${pages} and leaves in those of ${travelling}`;
}

async function quotaOf({ process, threadIds }: Guest): Promise<CpuQuotaOpening> {
  const reason = "QEMU's process cannot be seen from here";
  if (process === undefined) return { kind: "unavailable", reason };
  return await openCpuQuota({ processId: process.pid, threadIds });
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
  const status = await migrationUnderWay(qmp);
  if (status !== undefined) {
    problems.push(`its guest is being migrated already (${status}): wait, or cancel that`);
  }
  const reasons = (await ask(qmp, "query-migrate")).texts("blocked-reasons");
  problems.push(
    ...reasons.map((reason) => `QEMU cannot migrate it: ${reason}: remove that device`),
  );
  return problems;
}
