/**
 * After two payloads in a row that did not shrink, and after each one more, 1, 3, 7, then so many are
 * not even tried: what shrinks again behind them goes raw, too, so these are no more than a few MiB.
 * A single one is no sign: text and pictures lie side by side.
 */
const SKIP_MAX = 15;

/** Rounds for which a chunk that did not shrink is left alone; doubles with every failure. */
const ROUNDS_MAX = 16;

/**
 * Remembers which memory does not shrink, so that no time is lost on trying it again and again: a
 * chunk is left alone for some rounds, and while nothing shrinks at all, only a sample is tried.
 */
export class Stubbornness {
  /**
   * By chunk: the round in which it did not shrink, and for how many it is then left alone. A chunk
   * has several payloads: within the round, one says nothing of the others.
   */
  readonly #chunks = new Map<number, { round: number; rounds: number }>();
  #failures = 0;
  #skipsLeft = 0;

  mayTry({ chunk, round }: { chunk: number; round: number }): boolean {
    const known = this.#chunks.get(chunk);
    const isLeftAlone = known !== undefined && round > known.round;
    if (isLeftAlone && round <= known.round + known.rounds) return false;
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
    this.#skipsLeft = Math.min(2 ** (this.#failures - 1) - 1, SKIP_MAX);
    const known = this.#chunks.get(chunk);
    if (known?.round === round) return;
    const rounds = Math.min((known?.rounds ?? 0) * 2 || 1, ROUNDS_MAX);
    this.#chunks.set(chunk, { round, rounds });
  }
}
