import { assert } from "../base/assert.ts";
import { CHANNELS_MAX } from "../channels/frame.ts";

/**
 * Names a version of a page: which frame of which channel brought it. A delta says which generation
 * it is based on, and the destination, which keeps the generation of every page, checks that. Zero
 * is "none". Sequence numbers come round again after 2^26 frames; see `isRecent`.
 */
const SEQUENCE_BITS = 26;
const SEQUENCES = 2 ** SEQUENCE_BITS;
assert(CHANNELS_MAX * SEQUENCES <= 2 ** 32, "a generation has 32 bits");

export function generationOf(channel: number, sequence: number): number {
  assert(channel >= 1 && channel <= CHANNELS_MAX, "pages travel in bulk channels");
  return (channel - 1) * SEQUENCES + (sequence % SEQUENCES);
}

/** False for a version so old that its generation may soon mean another one. */
export function isRecent(generation: number, current: number): boolean {
  const frames = (current - generation + SEQUENCES) % SEQUENCES;
  return generation !== 0 && frames < SEQUENCES / 2;
}
