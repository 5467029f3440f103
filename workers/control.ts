import { assert } from "../base/assert.ts";
import { createGate } from "./gate.ts";
import { TRIALS_WORDS } from "./trials.ts";

/**
 * The words that the coordinator and its workers share, by who writes them:
 *
 *   stop      coordinator   a row per channel. Word 0: 0 while its thread goes on, 1 when it must
 *                           stop; waits are on it. Word 1: 1 when the round must end soon. Word 2:
 *                           1 when the channel's tasks must, see askBack. Word 3: 1 when the
 *                           migration must stop, for which no channel is taken up again
 *   pace      workers       when the next byte may go, see `workers/pace.ts`
 *   limit     coordinator   bytes per second over all channels, 0 for no limit
 *   codec     coordinator   how payloads are compressed, see setCodecSettings
 *   trials    workers       what `auto` tries, in all channels together, see `workers/trials.ts`
 *   gate      lanes         word 0: how many wait for a page, or bring one that is waited for, see
 *                           `workers/gate.ts`. Word 1, by the coordinator: 1 in post-copy.
 *                           Word 2: how often a page was waited for
 *   counters  one channel   a row per channel, see COUNTERS; others only read
 */
export interface Control {
  readonly stop: Int32Array;
  /** Word 0: pace in ns, word 1: limit. */
  readonly pacing: BigInt64Array;
  readonly codec: Int32Array;
  readonly trials: Int32Array;
  readonly gate: Int32Array;
  readonly counters: Float64Array;
}

/** How payloads are compressed from the next frame on. */
export interface CodecSettings {
  /** Number of the codec in the list; 0 for none. */
  readonly codec: number;
  readonly level: number;
  /** Whether the worker decides frame by frame if it pays. */
  readonly isAuto: boolean;
  /** Of one core, for each channel's compression; 0 for no limit. */
  readonly cpuShare: number;
  /** How much longer than raw memory the codec may take and still be chosen, of 1. */
  readonly extraTime: number;
}

const CPU_SHARE_UNIT = 1000;
const EXTRA_TIME_UNIT = 100;
const LEVEL_SHIFT = 8;
const AUTO_BIT = 1 << 16;

/** In one word, for a level must never meet the codec that was set before or after its own. */
export function setCodecSettings(control: Control, settings: CodecSettings): void {
  const { codec, level, isAuto, cpuShare, extraTime } = settings;
  assert(codec >= 0 && codec < 256 && level >= 0 && level < 256, "a codec and a level are bytes");
  Atomics.store(control.codec, 1, Math.ceil(cpuShare * CPU_SHARE_UNIT));
  Atomics.store(control.codec, 2, Math.round(extraTime * EXTRA_TIME_UNIT));
  Atomics.store(control.codec, 0, codec | (level << LEVEL_SHIFT) | (isAuto ? AUTO_BIT : 0));
}

export function readCodecSettings({ codec }: Control): CodecSettings {
  const word = Atomics.load(codec, 0);
  return {
    codec: word & 0xff,
    level: (word >>> LEVEL_SHIFT) & 0xff,
    isAuto: (word & AUTO_BIT) !== 0,
    cpuShare: Atomics.load(codec, 1) / CPU_SHARE_UNIT,
    extraTime: Atomics.load(codec, 2) / EXTRA_TIME_UNIT,
  };
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
  "chunks",
  "scannedBytes",
  "scanMs",
  "foundPages",
  "foundBytes",
  "zero",
  "unchanged",
  "delta",
  "compressed",
  "raw",
  "repeated",
  "rawWayPages",
  "rawWayBytes",
  "deltaWayPages",
  "deltaWayBytes",
  "codecWayPages",
  "codecWayBytes",
  "untouched",
  "deltaHits",
  "deltaMisses",
  "deltaOverflows",
  "deltaEvictions",
  "deltaRefusals",
  "deltaBeforeBytes",
  "deltaAfterBytes",
  "deltaPassedPages",
  "deltaChoice",
  "deltaComparingMsPerMiB",
  "deltaWholeMsPerMiB",
  "deltaChoiceChanges",
  "codecMs",
  "codecTriedBytes",
  "codecBeforeBytes",
  "codecAfterBytes",
  "codecForcedFrames",
  "choiceWay",
  "choiceChanges",
  "choiceRawMsPerMiB",
  "choiceCodecMsPerMiB",
  "choiceCodec",
  "choiceCodecChanges",
  "codecWay0Ms",
  "codecWay0Share",
  "codecWay1Ms",
  "codecWay1Share",
  "codecWay2Ms",
  "codecWay2Share",
  "codecWay3Ms",
  "codecWay3Share",
] as const;
export type Counter = (typeof COUNTERS)[number];

/** By row of the ways that `auto` has: milliseconds per MiB, and what a byte became, of 1. */
export const CODEC_COUNTERS: readonly { readonly ms: Counter; readonly share: Counter }[] = [
  { ms: "codecWay0Ms", share: "codecWay0Share" },
  { ms: "codecWay1Ms", share: "codecWay1Share" },
  { ms: "codecWay2Ms", share: "codecWay2Share" },
  { ms: "codecWay3Ms", share: "codecWay3Share" },
];

/**
 * By the way that pages went to the other end: how many, and what was sent of them. What is in a
 * compressed payload counts there, deltas included; zero pages are nowhere, for nothing is sent of them.
 */
export const WAY_COUNTERS = {
  raw: { pages: "rawWayPages", bytes: "rawWayBytes" },
  delta: { pages: "deltaWayPages", bytes: "deltaWayBytes" },
  codec: { pages: "codecWayPages", bytes: "codecWayBytes" },
} as const satisfies Record<string, { readonly pages: Counter; readonly bytes: Counter }>;

const INDEX = Object.fromEntries(COUNTERS.map((counter, index) => [counter, index])) as Readonly<
  Record<Counter, number>
>;

/** Doubles per row: whole cache lines, since two channels in one line cost each other a factor. */
const ROW = 64;
assert(COUNTERS.length <= ROW, "a row holds every counter");

/** `gate` is that of a control before, which others still hold. */
export function createControl(channels: number, gate: Int32Array | null = null): Control {
  return {
    stop: new Int32Array(new SharedArrayBuffer(channels * STOP_ROW * 4)),
    pacing: new BigInt64Array(new SharedArrayBuffer(64)),
    codec: new Int32Array(new SharedArrayBuffer(64)),
    trials: new Int32Array(new SharedArrayBuffer(TRIALS_WORDS * 4)),
    gate: gate ?? createGate(),
    counters: new Float64Array(new SharedArrayBuffer(channels * ROW * 8)),
  };
}

/** Words per row of `stop`: a cache line, as waits look at it all the time. */
const STOP_ROW = 16;

/** One channel's words of `stop`. */
export function stopOf(control: Control, channel: number): Int32Array {
  const row = control.stop.subarray((channel - 1) * STOP_ROW, channel * STOP_ROW);
  assert(row.length === STOP_ROW, "every channel has a row");
  return row;
}

function setForAll({ stop }: Control, word: number, value: number): void {
  for (let at = word; at < stop.length; at += STOP_ROW) Atomics.store(stop, at, value);
}

/** Ends every wait of every worker; they return soon after, for good. */
export function stopWorkers(control: Control): void {
  setForAll(control, 3, 1);
  setForAll(control, 0, 1);
  for (let at = 0; at < control.stop.length; at += STOP_ROW) Atomics.notify(control.stop, at);
}

/** Whether every worker was told to end, for good. */
export function areWorkersStopped({ stop }: Control): boolean {
  return Atomics.load(stop, 3) !== 0;
}

/** Ends every wait of one channel's worker: its connection is given up. */
export function stopChannel(control: Control, channel: number): void {
  const stop = stopOf(control, channel);
  Atomics.store(stop, 0, 1);
  Atomics.notify(stop, 0);
}

/** The channel's worker, which has no task now, may wait again, unless everything was stopped. */
export function reviveChannel(control: Control, channel: number): void {
  const stop = stopOf(control, channel);
  if (Atomics.load(stop, 3) === 0) Atomics.store(stop, 0, 0);
}

export function isStopped(stop: Int32Array): boolean {
  return Atomics.load(stop, 0) !== 0;
}

/** While it is set, a task ends after the chunk that it is at; the other chunks stay dirty. */
export function setHurried(control: Control, hurried: boolean): void {
  setForAll(control, 1, hurried ? 1 : 0);
}

export function isHurried({ stop }: Control): boolean {
  return Atomics.load(stop, 1) !== 0;
}

/**
 * While it is set, the channel's tasks end after the chunk that they are at, so that others can
 * have the chunks that a slow channel has not begun.
 */
export function askBack(control: Control, channel: number, isAsked: boolean): void {
  Atomics.store(stopOf(control, channel), 2, isAsked ? 1 : 0);
}

/** Whether a task must leave the chunks that it has not begun. */
export function mustLeave(stop: Int32Array): boolean {
  return Atomics.load(stop, 1) !== 0 || Atomics.load(stop, 2) !== 0;
}

export function setBandwidthLimit(control: Control, bytesPerSecond: number): void {
  Atomics.store(control.pacing, 1, BigInt(Math.round(bytesPerSecond)));
  Atomics.store(control.pacing, 0, 0n); // What was promised at the old limit is forgotten.
}

/** What others have counted for a channel goes to its own row. Neither is anybody else's meanwhile. */
export function moveCounters(from: Control | undefined, to: Control, row: number): void {
  if (from === undefined) return;
  const [given, taken] = [new CounterRow(from, row), new CounterRow(to, row)];
  for (const counter of COUNTERS) {
    const amount = given.read(counter);
    if (amount === 0) continue;
    taken.add(counter, amount);
    given.set(counter, 0);
  }
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

  set(counter: Counter, value: number): void {
    this.#values[INDEX[counter]] = value;
  }

  read(counter: Counter): number {
    return this.#values[INDEX[counter]] as number;
  }
}
