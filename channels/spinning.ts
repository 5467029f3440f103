/**
 * Whether to try again at once pays where somebody waits over and over: after each time that it did
 * not, it is left out more often.
 */
export class Spinning {
  readonly #tries: number;
  readonly #skippedMax: number;
  #skips = 0;
  #skipsNext = 1;

  /** Up to so many tries in one wait; after tries in vain they are left out of up to `skippedMax`. */
  constructor({ tries, skippedMax }: { tries: number; skippedMax: number }) {
    this.#tries = tries;
    this.#skippedMax = skippedMax;
  }

  /** Tries for the wait that begins now. */
  budget(): number {
    if (this.#skips === 0) return this.#tries;
    this.#skips -= 1;
    return 0;
  }

  paid(): void {
    this.#skipsNext = 1;
  }

  failed(): void {
    this.#skips = this.#skipsNext;
    this.#skipsNext = Math.min(this.#skippedMax, 2 * this.#skipsNext);
  }
}
