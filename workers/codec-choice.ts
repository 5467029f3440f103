import { assert, must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { Codec } from "./codecs/codec.ts";
import { deflate } from "./codecs/deflate.ts";
import { zstd } from "./codecs/zstd.ts";

/** One way to compress: a codec, and how hard it tries. */
export interface CodecWay {
  readonly codec: Codec;
  /** Null: the level that is set for the codec. */
  readonly level: number | null;
}

/** What `auto` compresses with. It begins with the first, the fastest. A row is the whole change. */
export const CODEC_WAYS: readonly CodecWay[] = [
  { codec: zstd, level: null },
  { codec: zstd, level: 3 },
  { codec: zstd, level: 7 },
  { codec: deflate, level: 6 },
];

/** What one frame cost that was compressed. */
export interface CompressedFrame {
  readonly payloadBytes: number;
  readonly wireBytes: number;
  /** From the end of the frame before to the end of this one, waiting included. */
  readonly elapsedMs: number;
  /** Of that, time in which the connection would take no more. */
  readonly blockedMs: number;
  /** Of that, time in the codec. */
  readonly codecMs: number;
}

/** A sample of memory, as a way made it. */
export interface Sample {
  readonly ms: number;
  readonly bytes: number;
}

/** Of a payload, what is looked at with another way: enough to be like all of it. */
export const SAMPLE_BYTES = 256 * KIB;

/** What is measured together, whichever is reached first. */
const WINDOW_BYTES = 8 * MIB;
const WINDOW_MS = 100;

/** A channel that is blocked for more of its time waits for its link, and has time to spare. */
const IDLE_SHARE = 0.5;
/** One that is blocked for less has none: its link would take more than it makes. */
const BUSY_SHARE = 0.1;

/** Of the time that a frame would take on the link, what all work on it may take. */
const WORK_SHARE = 0.5;

/** Bytes must be fewer by this to be worth a change. */
const MARGIN = 0.97;

/** Of all time, what looks may cost, but for the first. */
const LOOKS_SHARE = 0.02;

/** How long a way that left no time to spare is not chosen again; doubles each time. */
const BARRED_MS_MIN = 1000;
const BARRED_MS_MAX = 64_000;

/** What one more sample changes of what is believed. */
const WEIGHT = 0.3;

interface Belief {
  /** Milliseconds per byte of payload; null before the first look. */
  msPerByte: number | null;
  /** What it makes of a payload, by what the first way makes of the same. */
  relative: number;
  /** What it made of samples, of 1. */
  share: number;
  /** Of the channel's time: when it was looked at last, and until when it is barred. */
  lookedMs: number;
  barredUntilMs: number;
  barredMs: number;
}

/**
 * Chooses, while a channel compresses, with which codec and level. The fastest, unless the link is
 * what everybody waits for: then the time is there to try harder, and fewer bytes are a shorter
 * migration. Now and then a sample of the memory at hand is compressed in another way as well; by what
 * that came to, and the rate at which the link drains, the way is chosen that makes the fewest bytes
 * and still leaves the channel waiting for its link. Where it does not, the first one is back at once.
 *
 * Pure: it is told what frames and samples cost and reads no clock.
 */
export class CodecChoice {
  readonly #beliefs: readonly Belief[];
  #way = 0;
  #candidate: number | null = null;
  #changes = 0;
  #elapsedMs = 0;
  #window = emptyWindow();

  constructor(ways = CODEC_WAYS.length) {
    assert(ways > 0, "there is a way to begin with");
    this.#beliefs = Array.from({ length: ways }, () => ({
      msPerByte: null,
      relative: 1,
      share: 1,
      lookedMs: Number.NEGATIVE_INFINITY,
      barredUntilMs: 0,
      barredMs: BARRED_MS_MIN,
    }));
  }

  /** The row of the way that the next payload should be compressed in. */
  get way(): number {
    return this.#way;
  }

  /** The row of another way that is worth a look at the next payload, or null. */
  get candidate(): number | null {
    return this.#candidate;
  }

  get changes(): number {
    return this.#changes;
  }

  /** Milliseconds per byte of row `way`, and what it made of a byte; null if no sample told. */
  costOf(way: number): { msPerByte: number; share: number } | null {
    const { msPerByte, share, lookedMs } = this.#of(way);
    return msPerByte === null || lookedMs < 0 ? null : { msPerByte, share };
  }

  /** Tells what the chosen way and the candidate made of the same `bytes`. */
  compare(bytes: number, { chosen, other }: { chosen: Sample; other: Sample }): void {
    const candidate = must(this.#candidate, "a look is at the candidate");
    assert(bytes > 0 && chosen.bytes > 0, "a sample is of something");
    this.#candidate = null;
    const known = this.#of(this.#way);
    const belief = this.#of(candidate);
    const relative = (other.bytes / chosen.bytes) * known.relative;
    belief.relative = belief.lookedMs < 0 ? relative : mixed(belief.relative, relative);
    this.#see(known, bytes, chosen);
    this.#see(belief, bytes, other);
  }

  #see(belief: Belief, bytes: number, sample: Sample): void {
    const isFirst = belief.lookedMs < 0;
    belief.msPerByte = mixed(isFirst ? null : belief.msPerByte, sample.ms / bytes);
    belief.share = mixed(isFirst ? null : belief.share, sample.bytes / bytes);
    belief.lookedMs = this.#elapsedMs;
  }

  /** Tells what a frame cost that was compressed; `cpuShare` of a core may be used, 0 for all of it. */
  learn(frame: CompressedFrame, cpuShare: number): void {
    const { payloadBytes, wireBytes, elapsedMs, blockedMs, codecMs } = frame;
    assert(payloadBytes > 0 && wireBytes > 0, "a compressed frame is of something");
    this.#elapsedMs += elapsedMs;
    const window = this.#window;
    window.payloadBytes += payloadBytes;
    window.wireBytes += wireBytes;
    window.elapsedMs += elapsedMs;
    window.blockedMs += blockedMs;
    window.codecMs += codecMs;
    if (window.payloadBytes < WINDOW_BYTES && window.elapsedMs < WINDOW_MS) return;
    this.#window = emptyWindow();
    this.#candidate = null;
    const belief = this.#of(this.#way);
    belief.msPerByte = mixed(belief.msPerByte, window.codecMs / window.payloadBytes);
    if (window.blockedMs < window.elapsedMs * BUSY_SHARE) this.#stepBack();
    if (window.blockedMs < window.elapsedMs * IDLE_SHARE) return;
    this.#turn(this.#best(window, cpuShare));
    this.#candidate = this.#due();
  }

  /** The way in use leaves no time to spare, and is not chosen again for a while. */
  #stepBack(): void {
    if (this.#way === 0) return;
    const belief = this.#of(this.#way);
    belief.barredUntilMs = this.#elapsedMs + belief.barredMs;
    belief.barredMs = Math.min(belief.barredMs * 2, BARRED_MS_MAX);
    this.#turn(0);
  }

  /** The way of the fewest bytes among those with which the link would still be waited for. */
  #best(window: CompressedFrame, cpuShare: number): number {
    const { payloadBytes, elapsedMs, blockedMs, codecMs } = window;
    const now = this.#of(this.#way);
    const otherWorkMs = elapsedMs - blockedMs - codecMs;
    let best = this.#way;
    let least = now.relative * MARGIN;
    for (const [way, { msPerByte, relative, barredUntilMs }] of this.#beliefs.entries()) {
      if (msPerByte === null || relative >= least || barredUntilMs > this.#elapsedMs) continue;
      const linkMs = (elapsedMs * relative) / now.relative;
      const itsMs = msPerByte * payloadBytes;
      if (otherWorkMs + itsMs > linkMs * WORK_SHARE) continue;
      if (cpuShare > 0 && itsMs > linkMs * cpuShare) continue;
      best = way;
      least = relative;
    }
    return best;
  }

  /** The way that was looked at longest ago, if another look may be had. */
  #due(): number | null {
    const ownMs = this.#of(this.#way).msPerByte ?? 0;
    let due: number | null = null;
    for (const [way, { msPerByte, lookedMs }] of this.#beliefs.entries()) {
      if (way === this.#way) continue;
      // The first look shows what the next one will cost.
      const costMs = ((msPerByte ?? 0) + ownMs) * SAMPLE_BYTES;
      const restMs = (costMs * this.#beliefs.length) / LOOKS_SHARE;
      if (this.#elapsedMs - lookedMs < restMs) continue;
      if (due === null || lookedMs < this.#of(due).lookedMs) due = way;
    }
    return due;
  }

  #turn(way: number): void {
    if (way === this.#way) return;
    this.#way = way;
    this.#changes += 1;
  }

  #of(way: number): Belief {
    return must(this.#beliefs[way], "a way is a row");
  }
}

function emptyWindow() {
  return { payloadBytes: 0, wireBytes: 0, elapsedMs: 0, blockedMs: 0, codecMs: 0 };
}

function mixed(before: number | null, sample: number): number {
  return before === null ? sample : before + (sample - before) * WEIGHT;
}
