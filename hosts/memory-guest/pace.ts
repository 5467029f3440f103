import { assert } from "../../base/assert.ts";

/** A vCPU that fell behind (the machine was busy) makes up for this much and forgets the rest. */
const CATCH_UP_MS = 20;

/** Sleeping for less costs more in waking up than it is worth. */
const WAIT_MS_MIN = 1;

/** The longest sleep of a vCPU: a lost wake-up costs this and never a hang. */
export const WAIT_MS_MAX = 1000;

/** A throttled vCPU owes its host at least this much sleep before it sleeps. */
const DEBT_MS_MIN = 2;

/**
 * Decides how many pages a vCPU may write now and how long it sleeps otherwise. Pure: it is told
 * the time. Time spent throttled is taken from the guest: it does not catch up on it afterwards.
 */
export class Pace {
  readonly #pagesPerMs: number;
  readonly #creditMax: number;
  #throttle = 0;
  #credit = 0;
  #debtMs = 0;
  #isPayingDebt = false;
  #lastMs: number | null = null;

  constructor(pagesPerSecond: number) {
    assert(pagesPerSecond >= 0, "a rate is not negative");
    this.#pagesPerMs = pagesPerSecond / 1000;
    this.#creditMax = Math.max(1, this.#pagesPerMs * CATCH_UP_MS);
  }

  set throttlePercent(percent: number) {
    this.#throttle = percent;
    if (percent > 0) return;
    this.#debtMs = 0;
    this.#isPayingDebt = false;
  }

  /** The vCPU does not run: time stands still until `advance` is called next. */
  stop(): void {
    this.#lastMs = null;
  }

  advance(nowMs: number): void {
    const elapsedMs = nowMs - (this.#lastMs ?? nowMs);
    this.#lastMs = nowMs;
    if (this.#isPayingDebt) {
      this.#debtMs -= elapsedMs;
      this.#isPayingDebt = this.#debtMs > 0;
      return;
    }
    this.#credit = Math.min(this.#creditMax, this.#credit + elapsedMs * this.#pagesPerMs);
    this.#debtMs += (elapsedMs * this.#throttle) / (100 - this.#throttle);
    this.#isPayingDebt = this.#debtMs >= DEBT_MS_MIN;
  }

  /** Whole pages that may be written now. */
  get pages(): number {
    return this.#isPayingDebt ? 0 : Math.floor(this.#credit);
  }

  /** How long to sleep while `pages` is 0. */
  get waitMs(): number {
    const wantedMs = this.#isPayingDebt ? this.#debtMs : (1 - this.#credit) / this.#pagesPerMs;
    return Math.min(WAIT_MS_MAX, Math.max(WAIT_MS_MIN, wantedMs));
  }

  wrote(pages: number): void {
    assert(pages <= this.#credit, "only what may be written is written");
    this.#credit -= pages;
  }
}
