/**
 * Whether to try again at once pays where somebody waits over and over: after each time that it did
 * not, it is left out more often.
 */
export class Spinning {
  readonly #skippedMax: number;
  #skips = 0;
  #skipsNext = 1;

  /** After tries in vain they are left out of up to so many waits. */
  constructor(skippedMax: number) {
    this.#skippedMax = skippedMax;
  }

  /** Whether to try in the wait that begins now. */
  begin(): boolean {
    if (this.#skips === 0) return true;
    this.#skips -= 1;
    return false;
  }

  paid(): void {
    this.#skipsNext = 1;
  }

  failed(): void {
    this.#skips = this.#skipsNext;
    this.#skipsNext = Math.min(this.#skippedMax, 2 * this.#skipsNext);
  }
}
