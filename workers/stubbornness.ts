/**
 * After payloads in a row that did not shrink, 1, 3, 7, then so many are not even tried: what shrinks
 * again behind them goes raw, too, so these are no more than a few MiB.
 */
const SKIP_MAX = 15;

/** Rounds for which a chunk that did not shrink is left alone; doubles with every failure. */
const ROUNDS_MAX = 16;

/**
 * Remembers which memory does not shrink, so that no time is lost on trying it again and again: a
 * chunk is left alone for some rounds, and while nothing shrinks at all, only a sample is tried.
 */
export class Stubbornness {
  /** By chunk: until which round it is left alone, and for how many the next time. */
  readonly #chunks = new Map<number, { untilRound: number; rounds: number }>();
  #failures = 0;
  #skipsLeft = 0;

  mayTry({ chunk, round }: { chunk: number; round: number }): boolean {
    const known = this.#chunks.get(chunk);
    if (known !== undefined && round <= known.untilRound) return false;
    if (this.#skipsLeft === 0) return true;
    this.#skipsLeft -= 1;
    return false;
  }

  learn({ chunk, round }: { chunk: number; round: number }, hasShrunk: boolean): void {
    if (hasShrunk) {
      this.#failures = 0;
      this.#chunks.delete(chunk);
      return;
    }
    this.#failures += 1;
    this.#skipsLeft = Math.min(2 ** this.#failures - 1, SKIP_MAX);
    const rounds = Math.min((this.#chunks.get(chunk)?.rounds ?? 0) * 2 || 1, ROUNDS_MAX);
    this.#chunks.set(chunk, { untilRound: round + rounds, rounds });
  }
}
