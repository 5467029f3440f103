import { writeFileSync } from "node:fs";
import { nowMs } from "../base/clock.ts";
import { Stopped } from "../channels/descriptor.ts";
import { Spinning } from "../channels/spinning.ts";
import { threadNumber } from "./thread-number.ts";

/** While faults follow each other, a lane looks this often; the system adds little, see below. */
const HOT_MS = 0.015;
const HOT_FOR_MS = 5;
/**
 * Later its sleeps are so much of the time since something came: pages are late by little of the time in
 * which nobody waits for any. A sleep costs some 40 us of a processor, which the background lacks.
 */
const COLD_SHARE = 1 / 20;
const COLD_MS_MAX = 2;

/** Where nothing that is urgent can come, unless a word tells so: pages that nobody has asked for. */
const UNASKED_HOT_MS = 0.1;
const UNASKED_COLD_MS = 2;

/** Where nobody needs an answer soon: before post-copy. */
const ASLEEP_MS = 5;

/**
 * It looks again at once for so long before the first sleep: a guest that misses memory asks for page
 * after page. A thread that sleeps wakes on the processor where it slept, also where the thread that it
 * answers is looking there and another processor is idle: Linux moves only threads apart that do not sleep.
 * By time and not by count, for somebody may wait for the processor.
 */
const LOOKS_MS = 5;
const LOOKS_PER_TIME = 4;

/**
 * Where both ends' lanes share a processor, one that looks keeps the other from answering; then it
 * sleeps at once, and this often before it tries again.
 */
const SKIPPED_MAX = 64;

/** How to wait for the next look: for a word that had this value, or some time. */
export interface Rest {
  readonly on: { readonly words: Int32Array; readonly index: number; readonly value: number };
  /** Nobody needs an answer soon. */
  readonly isAsleep: boolean;
  /** Something may come through the descriptor that nothing rings for. */
  readonly isExpecting: boolean;
}

/**
 * How a lane waits for its descriptor, which nothing can tell a thread of: first it looks again at
 * once, then it sleeps, short while pages are asked for and longer when there is nothing to do. Any
 * sleep is cut short by whoever notifies the word that it sleeps on, so that one who has asked for
 * nothing (`isExpecting`) need not look often: what it waits for is a question, and questions ring.
 */
export class Idleness {
  readonly #stop: Int32Array;
  readonly #spinning = new Spinning(SKIPPED_MAX);
  #isLooking = false;
  #looks = 0;
  #looksUntilMs = 0;
  /** When something happened last, or might for the first time. */
  #busyMs = 0;

  constructor(stop: Int32Array) {
    this.#stop = stop;
    lowerTimerSlack();
  }

  /** Something happened: the next one may follow soon. */
  wake(): void {
    if (this.#isLooking) this.#spinning.paid();
    this.#isLooking = this.#spinning.begin();
    const now = nowMs();
    this.#looksUntilMs = now + LOOKS_MS;
    this.#busyMs = now;
  }

  /**
   * Nothing was found: whether to look again at once. What is done between two looks is done often, and
   * should allocate nothing. Throws Stopped when all is over.
   */
  looksAgain(): boolean {
    if (Atomics.load(this.#stop, 0) !== 0) throw new Stopped();
    if (!this.#isLooking) return false;
    this.#looks += 1;
    if (this.#looks % LOOKS_PER_TIME !== 0 || nowMs() < this.#looksUntilMs) return true;
    this.#isLooking = false;
    this.#spinning.failed();
    return false;
  }

  /** Returns the milliseconds slept; throws Stopped when all is over. */
  rest({ on, isAsleep, isExpecting }: Rest): number {
    if (Atomics.load(this.#stop, 0) !== 0) throw new Stopped();
    const startMs = nowMs();
    if (isAsleep && isExpecting) this.#busyMs = startMs; // Once it is awake, something may come soon.
    const ms = isAsleep ? ASLEEP_MS : this.#sleepMs(startMs, isExpecting);
    Atomics.wait(on.words, on.index, on.value, ms);
    return nowMs() - startMs;
  }

  #sleepMs(now: number, isExpecting: boolean): number {
    const calmMs = now - this.#busyMs;
    const isHot = calmMs < HOT_FOR_MS;
    if (!isExpecting) return isHot ? UNASKED_HOT_MS : UNASKED_COLD_MS;
    if (isHot) return HOT_MS;
    return Math.min(COLD_MS_MAX, calmMs * COLD_SHARE);
  }
}

/**
 * Linux may wake a thread 50 us late, so that several wake at once. A lane cannot afford that, and a
 * thread may ask for less. Elsewhere, or where it is not allowed, sleeps are longer.
 */
function lowerTimerSlack(): void {
  try {
    writeFileSync(`/proc/${threadNumber()}/timerslack_ns`, "1");
  } catch {
    // Slower, and just as right.
  }
}
