import { assert } from "../base/assert.ts";

/**
 * Which channel a chunk travels in: always the same one while the shard does not change hands, so
 * that versions of a page arrive in order without a barrier. Neighbouring chunks take turns, so
 * that a hot region of the guest is spread over all channels.
 */
export function ownerOf(chunk: number, channels: number): number {
  assert(channels > 0, "somebody owns every chunk");
  return 1 + (chunk % channels);
}
