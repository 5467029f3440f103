import { assert } from "../base/assert.ts";
import { MIB } from "../base/units.ts";

/** The two ways of `auto`: as it is, or through the codec. */
export type Way = "raw" | "codec";

/** What one frame cost: its payload before compression, what was sent, and the time it took. */
export interface FrameFacts {
  /**
   * How it went. Through the codec also means that this made it no smaller; raw, where the codec is
   * the way, that it was not let through.
   */
  readonly way: Way;
  readonly payloadBytes: number;
  readonly wireBytes: number;
  /** From the end of the frame before to the end of this one, waiting included. */
  readonly elapsedMs: number;
  /** Of that, time in which the connection would take no more. */
  readonly blockedMs: number;
}

/** What is measured together and averaged, whichever is reached first. */
const WINDOW_BYTES = 16 * MIB;
const WINDOW_MS = 200;

/**
 * What a connection and its buffers may swallow without being any faster for it. Linux lets a
 * socket's buffer grow to 4 MiB; one that blocks is full, however small it is.
 */
const BUFFER_BYTES = 4 * MIB;

/** Raw memory is tried after this, unless the connection has blocked by then. */
const FIRST_LOOK_MS = 20;

/** Of its time: with raw memory, a channel that is blocked for less could gain nothing worth it. */
const RAW_BLOCKED_SHARE = 0.1;
/** A channel that is blocked for more, with the codec, has found its link's limit. */
const CODEC_BLOCKED_SHARE = 0.5;

/** The other way must be better by this to be worth a change. */
const MARGIN = 0.95;

/** One that tries alone has more room than it will have, and should find much. */
const MARGIN_ALONE = 0.8;

/** A difference so clear that a trial need not go on. */
const CLEAR = 1.5;
const TRIAL_BYTES = 2 * MIB;

/** Time lost to a trial at which it ends, whatever else it might have shown. */
const TRIAL_LOSS_MS = 20;

/**
 * A scout may have had bad luck with the processor, so others do not believe it for longer. By then
 * they know whether their link is full, and if it is, wait longer by themselves.
 */
const POSTPONE_MS_MAX = 600;

/** Of all time, what trials may cost. */
const TRIALS_SHARE = 0.03;
const STAY_MS_MIN = 100;
/** Links and memory change: where a trial is no great risk, it is made again after this. */
const STAY_MS_MAX = 4000;

/**
 * Chooses, while a channel sends, whether its frames go through the codec.
 *
 * What is compared is the time that payload takes, not the speed of link and processor apart:
 * whatever is the bottleneck, also a slow destination, is in it. Two signs save most trials. A way
 * that does not block is bound by this processor, so with raw memory there is nothing to gain. A
 * codec that does block has filled the link with fewer bytes than raw memory would be.
 *
 * It begins with the codec: on a slow link, a few MiB sent raw by mistake cost more than a few MiB
 * compressed by mistake cost on a fast one. For the same reason one channel of a link tries raw
 * memory first, alone; where it finds the room that the others' compression leaves it, that says
 * nothing yet, and all of them try together. `Trials` is how they know of each other.
 *
 * Who would rather have fewer bytes says how much longer they may take: raw memory then counts as
 * that much slower than it is.
 *
 * Pure: it is told what frames cost and reads no clock.
 */
export class Choice {
  #way: Way = "codec";
  #window = emptyWindow();
  /** Of frames that went raw although the codec is the way. */
  #forced = emptyWindow();
  /** Milliseconds per byte of payload in the last window of each way. */
  readonly #cost: { [way in Way]: number | null } = { raw: null, codec: null };
  /** How long the way has been kept since the last trial, and how long it must be. */
  #stayedMs = 0;
  #stayMs = 0;
  #trial: Trial | null = null;
  #isRawDue = false;
  #verdict: "better" | "worse" | null = null;
  #changes = 0;
  /** What a millisecond counts for. */
  readonly #price: { readonly [way in Way]: number };

  /** The codec may take longer than raw memory by `extraTime`, of 1, and still be chosen. */
  constructor(extraTime = 0) {
    this.#price = { raw: 1 + extraTime, codec: 1 };
  }

  /** The way that the next frame should go. */
  get way(): Way {
    return this.#way;
  }

  /** The way that was found better, also while the other one is tried. */
  get chosen(): Way {
    return this.#trial === null ? this.#way : other(this.#way);
  }

  /** Milliseconds per byte of payload that each way took last; null when it was not tried. */
  get costMs(): { readonly [way in Way]: number | null } {
    return this.#cost;
  }

  /** How often the way was changed for good. */
  get changes(): number {
    return this.#changes;
  }

  /** Whether raw memory is worth a trial by now; see `scout`. */
  get isRawDue(): boolean {
    return this.#isRawDue;
  }

  /** Tries raw memory while the other channels do not. */
  scout(): void {
    assert(this.#isRawDue, "a trial is due before it begins");
    this.#begin({ isAlone: true });
  }

  /** What a trial alone has come to, once. Better: all channels should try together. */
  takeVerdict(): "better" | "worse" | null {
    const verdict = this.#verdict;
    this.#verdict = null;
    return verdict;
  }

  /** All channels of the link begin to try raw memory. */
  join(): void {
    if (this.#trial !== null || this.#way === "raw") return;
    // A few frames say little: they do only where nothing else is known.
    if (this.#window.payloadBytes > 0) this.#cost.codec ??= costOf(this.#window);
    if (this.#cost.codec !== null) this.#begin({ isAlone: false });
  }

  /** How long raw memory is not worth another trial after one that was worse. */
  get stayMs(): number {
    return this.#stayMs;
  }

  /**
   * Another channel found raw memory worse, and would not try it again for `stayMs`. A trial that cost
   * next to nothing proves little, and may be made once more.
   */
  postpone(stayMs: number): void {
    if (this.#trial !== null || this.#way === "raw" || stayMs <= STAY_MS_MIN) return;
    this.#isRawDue = false;
    this.#stayedMs = 0;
    this.#stayMs = Math.min(stayMs, POSTPONE_MS_MAX);
  }

  /** Tells what a frame cost: it counts for the way that it went. */
  learn(frame: FrameFacts): void {
    assert(frame.elapsedMs >= 0 && frame.payloadBytes >= 0, "a frame costs no less than nothing");
    if (this.#trial === null) this.#stayedMs += frame.elapsedMs;
    if (frame.way !== this.#way) this.#learnForced(frame);
    else if (this.#trial === null) this.#stay(frame);
    else this.#try(frame, this.#trial);
  }

  /** It tells what raw memory costs, unless that is what a trial compares with. */
  #learnForced(frame: FrameFacts): void {
    assert(this.#way === "codec", "nothing is forced through the codec");
    if (this.#trial !== null) return;
    const window = add(this.#forced, frame);
    if (!isWhole(window) || window.payloadBytes === 0) return;
    this.#cost.raw = costOf(window);
    this.#forced = emptyWindow();
  }

  #stay(frame: FrameFacts): void {
    const window = add(this.#window, frame);
    // Where bytes count, a codec is not judged by what it takes before it is warm.
    const isHasty = this.#cost.codec === null && this.#price.raw === this.#price.codec;
    const isFull = isHasty
      ? window.elapsedMs >= FIRST_LOOK_MS || window.wireBytes >= BUFFER_BYTES
      : isWhole(window);
    if (!isFull || window.payloadBytes === 0) return;
    this.#cost[this.#way] = costOf(window);
    this.#window = emptyWindow();
    if (this.#way === "codec") this.#isRawDue = this.#mayRawGain(window);
    else if (this.#isCodecDue(window)) this.#begin({ isAlone: false });
  }

  /** Tries the other way. */
  #begin({ isAlone }: { isAlone: boolean }): void {
    this.#turn();
    // What went raw still fills the buffers; what was compressed may have left them empty.
    const settleBytes = this.#way === "raw" ? BUFFER_BYTES : 0;
    this.#trial = { isAlone, payloadBytes: 0, settleBytes };
  }

  #isCodecDue(window: Window): boolean {
    const isBlocked = window.blockedMs > window.elapsedMs * RAW_BLOCKED_SHARE;
    const mayGain = isBlocked || this.#price.raw > this.#price.codec;
    return mayGain && this.#isDue(this.#stayMs);
  }

  #isDue(stayMs: number): boolean {
    return this.#stayedMs >= stayMs;
  }

  /** A link that is full of compressed memory takes raw memory no faster than that, byte by byte. */
  #mayRawGain(window: Window): boolean {
    const isBlocked = window.blockedMs > window.elapsedMs * CODEC_BLOCKED_SHARE;
    if (!isBlocked) return this.#isDue(this.#stayMs);
    const trialMs = (TRIAL_BYTES * window.elapsedMs) / Math.max(1, window.wireBytes);
    return this.#isDue(Math.max(STAY_MS_MAX, trialMs / TRIALS_SHARE));
  }

  #try(frame: FrameFacts, trial: Trial): void {
    const knownMs = this.#cost[other(this.#way)];
    assert(knownMs !== null, "a trial compares with what is known");
    const known = knownMs * this.#price[other(this.#way)];
    const price = this.#price[this.#way];
    trial.payloadBytes += frame.payloadBytes;
    if (trial.settleBytes > 0) {
      trial.settleBytes -= frame.wireBytes;
      if (frame.blockedMs > 0) trial.settleBytes = 0;
      // While it waited, no more than this frame can have drained.
      const least = frame.blockedMs / Math.max(1, frame.payloadBytes);
      if (least * price > known * CLEAR) this.#judge(least, knownMs, trial);
      return;
    }
    const window = add(this.#window, frame);
    if (window.payloadBytes === 0) return;
    const costMs = costOf(window);
    const cost = costMs * price;
    const lostMs = (cost - known) * window.payloadBytes;
    const isClear = cost > known * CLEAR || cost * CLEAR < known;
    const isOver = (isClear && window.payloadBytes >= TRIAL_BYTES) || isWhole(window);
    if (isOver || lostMs >= TRIAL_LOSS_MS) this.#judge(costMs, knownMs, trial);
  }

  /** Ends a trial: its way took `costMs` where the way before it takes `knownMs`. */
  #judge(costMs: number, knownMs: number, { isAlone, payloadBytes }: Trial): void {
    this.#cost[this.#way] = costMs;
    const cost = costMs * this.#price[this.#way];
    const known = knownMs * this.#price[other(this.#way)];
    this.#trial = null;
    this.#window = emptyWindow();
    this.#stayedMs = 0;
    const lostMs = Math.max(0, (cost - known) * payloadBytes);
    this.#stayMs = Math.min(Math.max(lostMs / TRIALS_SHARE, STAY_MS_MIN), STAY_MS_MAX);
    const isBetter = cost < known * (isAlone ? MARGIN_ALONE : MARGIN);
    if (isAlone) this.#verdict = isBetter ? "better" : "worse";
    if (isBetter && !isAlone) this.#changes += 1;
    else this.#turn();
  }

  #turn(): void {
    this.#way = other(this.#way);
    this.#isRawDue = false;
    this.#window = emptyWindow();
    this.#forced = emptyWindow();
  }
}

interface Trial {
  /** The other channels go on as they were. */
  readonly isAlone: boolean;
  payloadBytes: number;
  /** To be sent before it counts. */
  settleBytes: number;
}

interface Window {
  payloadBytes: number;
  wireBytes: number;
  elapsedMs: number;
  blockedMs: number;
}

function emptyWindow(): Window {
  return { payloadBytes: 0, wireBytes: 0, elapsedMs: 0, blockedMs: 0 };
}

function add(window: Window, frame: FrameFacts): Window {
  window.payloadBytes += frame.payloadBytes;
  window.wireBytes += frame.wireBytes;
  window.elapsedMs += frame.elapsedMs;
  window.blockedMs += frame.blockedMs;
  return window;
}

function isWhole(window: Window): boolean {
  return window.payloadBytes >= WINDOW_BYTES || window.elapsedMs >= WINDOW_MS;
}

function costOf(window: Window): number {
  return window.elapsedMs / window.payloadBytes;
}

function other(way: Way): Way {
  return way === "raw" ? "codec" : "raw";
}
