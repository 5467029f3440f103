import { DISCARD_BITS_BYTES_MAX } from "../channels/frame.ts";
import { encodeDiscard } from "../channels/messages.ts";
import { popcount } from "../workers/dirty-words.ts";

const WORDS_MAX = DISCARD_BITS_BYTES_MAX / 4;

/**
 * Sends the bits of missing pages, in as many frames as it takes, and returns how many there are.
 * Stretches without any are left out.
 */
export async function tellMissing(
  blocks: Iterable<{ block: number; words: Int32Array }>,
  send: (body: Uint8Array) => Promise<void>,
): Promise<number> {
  let pages = 0;
  for (const { block, words } of blocks) {
    for (let at = 0; at < words.length; at += WORDS_MAX) {
      const bits = words.slice(at, at + WORDS_MAX);
      const count = bits.reduce((sum, word) => sum + popcount(word), 0);
      pages += count;
      if (count > 0) await send(encodeDiscard({ block, firstPage: at * 32, bits }));
    }
  }
  return pages;
}
