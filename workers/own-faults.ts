import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { awaitPage, type FaultDoor, type Fetch, type Wanted } from "./fault-door.ts";
import { LaneReceiver } from "./lane-receiver.ts";
import { type LaneState, legOf, placeOf } from "./lane-state.ts";

interface OpenLane {
  readonly leg: number;
  /** Null where it could not be opened: its own thread serves it. */
  readonly receiver: LaneReceiver | null;
}

/**
 * A door whose vCPU fetches its pages itself, in its own thread: it writes the request and reads the answer,
 * where else it would wake the lane's thread and be woken by it. The lane's thread serves whoever finds
 * another one fetching, and what takes longer.
 */
export class OwnFaults {
  readonly #door: FaultDoor;
  readonly #checksum: Checksum;
  readonly #lanes: OpenLane[] = [];
  readonly #meanwhile: (() => void) | null;
  readonly #fetch: Fetch = (what) => this.#fetchFor(what);

  private constructor(door: FaultDoor, checksum: Checksum, meanwhile: (() => void) | null) {
    this.#door = door;
    this.#checksum = checksum;
    this.#meanwhile = meanwhile;
  }

  /**
   * Opens what the calling thread needs, so that the first page need not wait for that. `meanwhile`: what a
   * thread that plays both ends does at each look, see `lane-rehearsal.ts`.
   */
  static async open(door: FaultDoor, meanwhile: (() => void) | null = null): Promise<OwnFaults> {
    const faults = new OwnFaults(door, await loadChecksum(), meanwhile);
    for (const [lane, state] of (door.lanes?.states ?? []).entries()) faults.#open(lane, state);
    return faults;
  }

  /** As `awaitPage` of the door. */
  awaitPage(what: Wanted, limitMs: number): boolean {
    return awaitPage(this.#door, what, limitMs, this.#fetch);
  }

  /** Closes its files. */
  close(): void {
    for (const { receiver } of this.#lanes.splice(0)) receiver?.close();
  }

  #fetchFor(what: Wanted): boolean {
    const states = this.#door.lanes?.states ?? [];
    const lane = what.seat % states.length;
    const state = states[lane];
    if (state === undefined) return false;
    const open = this.#lanes[lane];
    const current = open?.leg === legOf(state) ? open : this.#open(lane, state);
    return current.receiver?.bring(current.leg, what) ?? false;
  }

  #open(lane: number, state: LaneState): OpenLane {
    this.#lanes[lane]?.receiver?.close();
    const leg = legOf(state);
    const open = { leg, receiver: leg === 0 ? null : this.#receiverOf(lane, state) };
    this.#lanes[lane] = open;
    return open;
  }

  #receiverOf(lane: number, state: LaneState): LaneReceiver | null {
    const { lanes } = this.#door;
    if (lanes === undefined) return null;
    try {
      return new LaneReceiver({ ...lanes.receive, door: this.#door }, placeOf(state), {
        state,
        lane,
        lanes: lanes.states.length,
        checksum: this.#checksum,
        meanwhile: this.#meanwhile,
      });
    } catch {
      return null;
    }
  }
}
