import type { Choice } from "./choice.ts";

/**
 * The words: when the scout set out, or 0; trials together so far; scouts that found it worse, and
 * the milliseconds that the last of them would wait before it tries again.
 */
const SCOUT = 0;
const TOGETHER = 1;
const WORSE = 2;
const STAY = 3;
export const TRIALS_WORDS = 4;

/** A scout that was not heard of for so long has nothing to send, or was lost with its channel. */
const SCOUT_MS_MAX = 2000;

/**
 * One channel's part in the trials of raw memory that the channels of a link make: one of them at a
 * time goes ahead, and if that was better, all follow at once.
 */
export class Trials {
  readonly #words: Int32Array;
  #together: number;
  #worse: number;

  /** `words` are what the channels share. */
  constructor(words: Int32Array) {
    this.#words = words;
    this.#together = Atomics.load(words, TOGETHER);
    this.#worse = Atomics.load(words, WORSE);
  }

  /** After each frame that `choice` has learned of. */
  consult(choice: Choice, nowMs: number): void {
    const verdict = choice.takeVerdict();
    if (verdict !== null) {
      if (verdict === "worse") Atomics.store(this.#words, STAY, Math.ceil(choice.stayMs));
      Atomics.store(this.#words, SCOUT, 0);
      Atomics.add(this.#words, verdict === "better" ? TOGETHER : WORSE, 1);
    }
    const worse = Atomics.load(this.#words, WORSE);
    if (worse !== this.#worse && verdict !== "worse") {
      choice.postpone(Atomics.load(this.#words, STAY));
    }
    this.#worse = worse;
    const together = Atomics.load(this.#words, TOGETHER);
    if (together !== this.#together) choice.join();
    this.#together = together;
    if (choice.isRawDue && this.#setOut(nowMs)) choice.scout();
  }

  #setOut(nowMs: number): boolean {
    const now = (Math.trunc(nowMs) | 1) & 0x7fff_ffff; // Never 0, and never negative.
    const since = Atomics.load(this.#words, SCOUT);
    const isOut = since !== 0 && now >= since && now - since < SCOUT_MS_MAX;
    return !isOut && Atomics.compareExchange(this.#words, SCOUT, since, now) === since;
  }
}
