import { KIB } from "../base/units.ts";
import { PAYLOAD_BYTES_MAX } from "../channels/frame.ts";
import { PIECE_BYTES } from "./workbench.ts";

/**
 * While a guest waits for pages, a frame is short: one that comes in between waits for the rest of it,
 * at either end, and for the system, which copies all of a write before it lets others run.
 */
const SHORT_FRAME_BYTES = 128 * KIB;

/** Faults follow each other closely. When none has come for so long, frames are longer again. */
const CALM_MS = 10;

/** How many bytes of pages one frame of a bulk channel may bring. */
export interface FrameBytes {
  /** Of those that are copied first. */
  readonly piece: number;
  /** Of those that go from where they lie. */
  readonly straight: number;
}

export const FRAME_BYTES = {
  /**
   * What goes from where it lies needs no room in the workbench. Each frame finds the caches full of the
   * one before, at both ends: with half as many, the processors take some 8 % less.
   */
  precopy: { piece: PIECE_BYTES, straight: PAYLOAD_BYTES_MAX },
  /** In post-copy, when nobody waits for a page: somebody may soon. */
  calm: { piece: PIECE_BYTES, straight: PIECE_BYTES },
  awaited: { piece: SHORT_FRAME_BYTES, straight: SHORT_FRAME_BYTES },
} as const satisfies Readonly<Record<string, FrameBytes>>;

/**
 * Decides how long the frames of a bulk channel are. In post-copy they are short while pages are
 * waited for, from its beginning on, and longer when nobody asks: short frames cost the rest of the
 * memory some of its rate.
 *
 * Pure: it is told what has happened, and the time.
 */
export class FrameLength {
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
  }): FrameBytes {
    if (!isPostcopy) return FRAME_BYTES.precopy;
    if (faults !== this.#faults) {
      this.#faults = faults;
      this.#faultMs = nowMs;
    }
    return nowMs - this.#faultMs < CALM_MS ? FRAME_BYTES.awaited : FRAME_BYTES.calm;
  }
}
