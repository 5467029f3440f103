import { assert, must } from "../../base/assert.ts";
import type { SweepState, VcpuState } from "./sweep.ts";

/**
 * The words that a vCPU thread shares with its host.
 *
 *   word   0      wanted    host writes, notifies   what the vCPU shall do; see `packOrders`
 *   word  16      adopted   vCPU writes, notifies   the last wanted word that it follows
 *   word  17      turn      vCPU writes             its registers: see `VcpuState`. Exact while
 *   words 18..21  sweeps    vCPU writes             an order not to run is adopted; the host
 *                                                   writes them before the vCPU begins.
 *   words 22..23  written   vCPU writes             pages written on this host, a 64-bit float
 *
 * A vCPU adopts an order only between two writes: all of a page is written and marked, or none.
 */
export interface Control {
  readonly words: Int32Array;
  readonly written: Float64Array;
}

export const WANTED = 0;
export const ADOPTED = 16;
export const TURN = 17;
export const SWEEPS = 18;
const WRITTEN = 22;

/** Words of one sweep: its position, then its round. */
export const SWEEP_WORDS = 2;
const CONTROL_BYTES = 24 * 4;

export function createControl(): Control {
  const buffer = new SharedArrayBuffer(CONTROL_BYTES);
  return { words: new Int32Array(buffer), written: new Float64Array(buffer, WRITTEN * 4, 1) };
}

/** What a host wants of a vCPU. */
export interface Orders {
  readonly run: boolean;
  /** Every write marks the dirty log. */
  readonly track: boolean;
  /** 0 to 99. */
  readonly throttlePercent: number;
}

const RUN = 1 << 0;
const TRACK = 1 << 1;
const THROTTLE_SHIFT = 2;
const SEQUENCE_SHIFT = 9;
const SEQUENCE_MAX = 2 ** 22;

/**
 * Orders in one word, so that they change at once: bit 0 run, bit 1 track, bits 2 to 8 throttle,
 * bits 9 to 30 the order's number, so that the answer to an equal order is not taken for its own.
 */
export function packOrders(orders: Orders, sequence: number): number {
  const { run, track, throttlePercent } = orders;
  assert(throttlePercent >= 0 && throttlePercent < 100, "a throttled vCPU still runs");
  const flags = (run ? RUN : 0) | (track ? TRACK : 0) | (throttlePercent << THROTTLE_SHIFT);
  return flags | ((sequence % SEQUENCE_MAX) << SEQUENCE_SHIFT);
}

export function unpackOrders(word: number): Orders {
  return {
    run: (word & RUN) !== 0,
    track: (word & TRACK) !== 0,
    throttlePercent: (word >>> THROTTLE_SHIFT) & 0x7f,
  };
}

/** Called by the host before the vCPU begins. */
export function writeState({ words }: Control, state: VcpuState): void {
  words[TURN] = state.turn;
  for (const [index, { position, round }] of state.sweeps.entries()) {
    words[SWEEPS + index * SWEEP_WORDS] = position;
    words[SWEEPS + index * SWEEP_WORDS + 1] = round;
  }
}

/** Called by the host while the vCPU does not run. */
export function readState({ words }: Control, sweepCount: number): VcpuState {
  const word = (index: number) => must(words[index], "a control has all its words");
  const sweeps = Array.from({ length: sweepCount }, (_, index): SweepState => {
    const at = SWEEPS + index * SWEEP_WORDS;
    return { position: word(at), round: word(at + 1) >>> 0 };
  });
  return { turn: word(TURN), sweeps };
}
