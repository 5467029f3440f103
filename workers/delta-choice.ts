import type { Memory } from "./compressor.ts";

/** Rounds for which a chunk without gain is left alone; doubles each time. */
const ROUNDS_MAX = 16;

/** Of pages that a version was known of: with more that changed too much, deltas are no gain. */
const OVERFLOW_SHARE = 0.75;

/** Fewer pages than this say little of their chunk. */
const PAGES_MIN = 8;

/**
 * Chooses for `auto`, chunk by chunk, whether pages are compared with the versions that were sent of
 * them. Where they mostly changed so much that they went whole all the same, the comparing and the
 * remembering was for nothing, and kept other pages out of the cache: such a chunk is left alone for
 * a round, then two, four.
 *
 * Pure: what it knows is what it is told.
 */
export class DeltaChoice {
  readonly #chunks = new Map<number, { round: number; rounds: number }>();

  mayTry({ chunk, round }: Memory): boolean {
    const known = this.#chunks.get(chunk);
    return known === undefined || round <= known.round || round > known.round + known.rounds;
  }

  /** Of `hits` pages of a chunk of which a version was known, so many changed too much. */
  learn({ chunk, round }: Memory, { hits, overflows }: { hits: number; overflows: number }): void {
    if (hits < PAGES_MIN) return;
    if (overflows <= hits * OVERFLOW_SHARE) {
      this.#chunks.delete(chunk);
      return;
    }
    const known = this.#chunks.get(chunk);
    if (known?.round === round) return;
    const rounds = Math.min((known?.rounds ?? 0) * 2 || 1, ROUNDS_MAX);
    this.#chunks.set(chunk, { round, rounds });
  }
}
