import { assert } from "../base/assert.ts";

/**
 * The words that the coordinator and its workers share, by who writes them:
 *
 *   stop      coordinator   0 while the migration goes on, 1 when it must stop; waits are on it
 *   pace      workers       when the next byte may go, see `workers/pace.ts`
 *   limit     coordinator   bytes per second over all channels, 0 for no limit
 *   counters  one channel   a row per channel, see COUNTERS; others only read
 */
export interface Control {
  readonly stop: Int32Array;
  /** Word 0: pace in ns, word 1: limit. */
  readonly pacing: BigInt64Array;
  readonly counters: Float64Array;
}

/**
 * What a channel's worker counts. Plain 64-bit stores, each by one writer: a reader sees an old or
 * a new figure, never a mixture.
 */
export const COUNTERS = [
  "movedBytes",
  "sendMs",
  "waitMs",
  "busyMs",
  "cpuMs",
  "pages",
  "zero",
  "unchanged",
  "delta",
  "compressed",
  "raw",
  "untouched",
] as const;
export type Counter = (typeof COUNTERS)[number];

const INDEX = Object.fromEntries(COUNTERS.map((counter, index) => [counter, index])) as Readonly<
  Record<Counter, number>
>;

/** Doubles per row: whole cache lines, since two channels in one line cost each other a factor. */
const ROW = 16;
assert(COUNTERS.length <= ROW, "a row holds every counter");

export function createControl(channels: number): Control {
  return {
    stop: new Int32Array(new SharedArrayBuffer(64)),
    pacing: new BigInt64Array(new SharedArrayBuffer(64)),
    counters: new Float64Array(new SharedArrayBuffer(channels * ROW * 8)),
  };
}

/** Ends every wait of every worker; they return soon after. */
export function stopWorkers(control: Control): void {
  Atomics.store(control.stop, 0, 1);
  Atomics.notify(control.stop, 0);
}

export function setBandwidthLimit(control: Control, bytesPerSecond: number): void {
  Atomics.store(control.pacing, 1, BigInt(Math.round(bytesPerSecond)));
  Atomics.store(control.pacing, 0, 0n); // What was promised at the old limit is forgotten.
}

/** One channel's counters; `row` counts channels from 0. */
export class CounterRow {
  readonly #values: Float64Array;

  constructor(control: Control, row: number) {
    this.#values = control.counters.subarray(row * ROW, (row + 1) * ROW);
    assert(this.#values.length === ROW, "every channel has a row");
  }

  add(counter: Counter, amount: number): void {
    const index = INDEX[counter];
    this.#values[index] = (this.#values[index] as number) + amount;
  }

  read(counter: Counter): number {
    return this.#values[INDEX[counter]] as number;
  }
}
