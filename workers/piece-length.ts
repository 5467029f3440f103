import { KIB } from "../base/units.ts";
import { PIECE_BYTES } from "./workbench.ts";

/**
 * While a guest waits for pages, a frame is short: one that comes in between waits for the rest of it,
 * at either end, and for the system, which copies all of a write before it lets others run.
 */
export const SHORT_PIECE_BYTES = 128 * KIB;

/** Faults follow each other closely. When none has come for so long, the rest goes at full length. */
const CALM_MS = 10;

/**
 * Decides how many bytes of pages one frame of a bulk channel may bring. In post-copy few while pages
 * are waited for, from its beginning on; as many as before when nobody asks: short frames cost the
 * rest of the memory some of its rate.
 *
 * Pure: it is told what has happened, and the time.
 */
export class PieceLength {
  #faults = -1;
  #faultMs = 0;

  /** `faults` is how often a page was asked for so far. */
  next({
    isPostcopy,
    faults,
    nowMs,
  }: {
    isPostcopy: boolean;
    faults: number;
    nowMs: number;
  }): number {
    if (!isPostcopy) return PIECE_BYTES;
    if (faults !== this.#faults) {
      this.#faults = faults;
      this.#faultMs = nowMs;
    }
    return nowMs - this.#faultMs < CALM_MS ? SHORT_PIECE_BYTES : PIECE_BYTES;
  }
}
