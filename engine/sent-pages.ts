import { wordCountFor } from "../workers/dirty-words.ts";
import type { SentPages } from "../workers/protocol.ts";

/** What was sent of a block of which nothing was sent yet: as if all of it were zero. */
export function createSentPages(pageCount: number): SentPages {
  return {
    hashes: new Int32Array(new SharedArrayBuffer(pageCount * 8)),
    content: new Int32Array(new SharedArrayBuffer(wordCountFor(pageCount) * 4)),
  };
}
