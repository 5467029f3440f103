import { MigrationError } from "../../base/errors.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import type { DestinationHost, DeviceSection } from "../../engine/host.ts";
import { ask } from "./answer.ts";
import { DESTINATION_NEEDS, MigrationSettings } from "./capabilities.ts";
import { decodeDescription, differences } from "./description.ts";
import { type Guest, inspect, refuse } from "./guest.ts";
import { Incoming } from "./incoming.ts";
import { Qmp } from "./qmp.ts";
import { announce, decodeRunState, runOn } from "./run-state.ts";
import { DEVICES_SECTION, RUN_STATE_SECTION } from "./source.ts";
import { liftLeftQuotas } from "./stale-quotas.ts";

/**
 * An unmodified QEMU that was started with `-incoming defer` and RAM in shared files. The engine
 * fills the RAM through the files; QEMU loads its devices from a local socket.
 */
export class QemuDestination implements DestinationHost {
  /** What was found and mended when this was opened, in sentences. */
  readonly notes: readonly string[];
  readonly #qmp: Qmp;
  readonly #guest: Guest;
  readonly #settings: MigrationSettings;
  #incoming: Incoming | null = null;
  #isWanted = true;
  #hasRun = true;
  #loading: Promise<void> = Promise.resolve();
  #runningSinceMs: number | undefined;
  #leftover: string | undefined;
  #afterwards: Promise<void> = Promise.resolve();

  /**
   * Connects to QEMU's QMP socket and looks at what waits there. Touches nothing of it, but lifts
   * what an engine that was killed has left on any guest. Throws HYPERVISOR_UNREACHABLE, or
   * GUEST_UNSUITABLE with everything that is in the way.
   */
  static async open(path: string): Promise<QemuDestination> {
    const notes = await liftLeftQuotas();
    const qmp = await Qmp.connect(path);
    try {
      const guest = await inspect(qmp, { access: "write", needs: DESTINATION_NEEDS });
      refuse([...(await obstacles(qmp)), ...guest.problems]);
      return new QemuDestination(qmp, guest, notes);
    } catch (error) {
      qmp.close();
      throw error;
    }
  }

  private constructor(qmp: Qmp, guest: Guest, notes: readonly string[]) {
    this.#qmp = qmp;
    this.#guest = guest;
    this.#settings = new MigrationSettings(qmp, DESTINATION_NEEDS);
    this.notes = notes;
  }

  async prepare(
    _announced: readonly BlockAnnouncement[],
    description: string,
  ): Promise<readonly Block[]> {
    this.#isWanted = true;
    refuse(await obstacles(this.#qmp));
    const source = decodeDescription(description);
    if (source === undefined) throw mismatch(["it is not the guest of a QEMU"]);
    const problems = differences(source, this.#guest.description);
    if (problems.length > 0) throw mismatch(problems);
    return this.#guest.blocks;
  }

  async loadDevices(sections: readonly DeviceSection[]): Promise<void> {
    const named = new Map(sections.map(({ name, bytes }) => [name, bytes]));
    const devices = named.get(DEVICES_SECTION);
    const runState = decodeRunState(named.get(RUN_STATE_SECTION) ?? new Uint8Array(0));
    if (devices === undefined || runState === undefined) {
      throw mismatch(["it came without the devices of a QEMU"]);
    }
    this.#hasRun = runState.hasRun;
    const loading = this.#load(devices);
    this.#loading = loading.catch(() => {});
    await loading;
    const state = await ask(this.#qmp, "query-status");
    if (state.flag("running")) throw new Error("QEMU runs the guest before it may");
  }

  async resume(): Promise<void> {
    if (this.#hasRun) this.#runningSinceMs = await runOn(this.#qmp);
    // The guest runs, which is what counts and what the source waits for.
    this.#afterwards = announce(this.#qmp).then(() => this.#settings.restore().catch(() => {}));
  }

  async discard(): Promise<void> {
    this.#isWanted = false;
    this.#incoming?.end();
    await this.#loading;
    if (this.#incoming !== null) this.#leftover = await leftoverOf(this.#qmp);
    if (!this.#qmp.isLost) await this.#settings.restore();
  }

  get lost(): Promise<MigrationError> {
    return this.#qmp.lost;
  }

  get runningSinceMs(): number | undefined {
    return this.#runningSinceMs;
  }

  get leftover(): string | undefined {
    return this.#leftover;
  }

  async close(): Promise<void> {
    await this.#afterwards;
    this.#qmp.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #load(devices: Uint8Array): Promise<void> {
    // Takes back the wish to run as soon as it is loaded, with which QEMU starts without -S.
    await this.#qmp.execute("stop");
    this.#checkWanted();
    await this.#settings.apply();
    this.#checkWanted();
    this.#incoming = new Incoming(this.#qmp, this.#guest.process);
    await this.#incoming.load(devices);
  }

  #checkWanted(): void {
    if (!this.#isWanted) throw new Error("the guest was discarded");
  }
}

/** In which state QEMU is after it was told to load a guest that it will not get. */
async function leftoverOf(qmp: Qmp): Promise<string> {
  const again = "start it again before the next attempt";
  const ended = `The destination's QEMU has ended, as versions before 9.1 do when a load fails; ${again}.`;
  const state = await stateOf(qmp).catch(() => ended);
  return state === ended
    ? ended
    : `The destination's QEMU holds a copy of the guest, stopped (${state}), which must never run: ${again}.`;
}

async function stateOf(qmp: Qmp): Promise<string> {
  return (await ask(qmp, "query-status")).text("status");
}

function mismatch(problems: readonly string[]): MigrationError {
  return new MigrationError("GUEST_MISMATCH", { problems });
}

/** What must not be, at the moment, for a guest to arrive. */
async function obstacles(qmp: Qmp): Promise<string[]> {
  const state = (await ask(qmp, "query-status")).text("status");
  const status = (await ask(qmp, "query-migrate")).optionalText("status") ?? "none";
  if (state === "inmigrate" && status === "none") return [];
  const found = state === "inmigrate" ? `its migration is in state ${status}` : `it is ${state}`;
  return [`it does not wait for a guest (${found}): start it afresh, with -incoming defer`];
}
