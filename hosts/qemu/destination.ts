import { MigrationError } from "../../base/errors.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import type { DestinationHost, DeviceSection } from "../../engine/host.ts";
import { ask } from "./answer.ts";
import { DESTINATION_NEEDS, MigrationSettings } from "./capabilities.ts";
import { decodeDescription, differences } from "./description.ts";
import { type Guest, inspect, refuse } from "./guest.ts";
import { Incoming } from "./incoming.ts";
import { Qmp } from "./qmp.ts";
import { decodeRunState, runOn } from "./run-state.ts";
import { DEVICES_SECTION, RUN_STATE_SECTION } from "./source.ts";

/**
 * An unmodified QEMU that was started with `-incoming defer` and RAM in shared files. The engine
 * fills the RAM through the files; QEMU loads its devices from a local socket.
 */
export class QemuDestination implements DestinationHost {
  readonly #qmp: Qmp;
  readonly #guest: Guest;
  readonly #settings: MigrationSettings;
  #incoming: Incoming | null = null;
  #hasRun = true;

  /**
   * Connects to QEMU's QMP socket and looks at what waits there, without touching anything. Throws
   * HYPERVISOR_UNREACHABLE, or GUEST_UNSUITABLE with everything that is in the way.
   */
  static async open(path: string): Promise<QemuDestination> {
    const qmp = await Qmp.connect(path);
    try {
      const guest = await inspect(qmp, { access: "write", needs: DESTINATION_NEEDS });
      refuse([...(await obstacles(qmp)), ...guest.problems]);
      return new QemuDestination(qmp, guest);
    } catch (error) {
      qmp.close();
      throw error;
    }
  }

  private constructor(qmp: Qmp, guest: Guest) {
    this.#qmp = qmp;
    this.#guest = guest;
    this.#settings = new MigrationSettings(qmp, DESTINATION_NEEDS);
  }

  async prepare(
    _announced: readonly BlockAnnouncement[],
    description: string,
  ): Promise<readonly Block[]> {
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
    // Takes back the wish to run as soon as it is loaded, with which QEMU starts without -S.
    await this.#qmp.execute("stop");
    await this.#settings.apply();
    this.#incoming = new Incoming(this.#qmp, this.#guest.process);
    await this.#incoming.load(devices);
    const state = await ask(this.#qmp, "query-status");
    if (state.flag("running")) throw new Error("QEMU runs the guest before it may");
  }

  async resume(): Promise<void> {
    if (this.#hasRun) await runOn(this.#qmp);
    await this.#settings.restore().catch(() => {}); // The guest runs, which is what counts.
  }

  async discard(): Promise<void> {
    this.#incoming?.end();
    if (!this.#qmp.isLost) await this.#settings.restore();
  }

  close(): void {
    this.#qmp.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
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
