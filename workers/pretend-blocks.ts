import { type CutRegion, sendBlockOf } from "./blocks.ts";
import { type DirtyWords, orBits, wordCountFor } from "./dirty-words.ts";
import type { SendBlock } from "./protocol.ts";

/** Memory of a guest that there is not: what a rehearsal plays with. */
export interface PretendRegion extends CutRegion {
  readonly pagesPerChunk: number;
}

/** As a source's thread is given it, with no page dirty. */
export function pretendSendBlock(region: PretendRegion): SendBlock {
  const [words, marks] = [region.pageCount, wordCountFor(region.pageCount)].map(
    (count) => new Int32Array(new SharedArrayBuffer(wordCountFor(count) * 4)),
  );
  const dirty = { words: words as Int32Array, summary: marks as Int32Array };
  return sendBlockOf(region, { dirty, firstKey: 0 });
}

/** Marks those pages dirty that have their bit in `bits`, of 32 after the other. */
export function markDirty(
  dirty: DirtyWords,
  bits: number,
  { first = 0, words = dirty.words.length }: { first?: number; words?: number } = {},
): void {
  for (let word = first; word < first + words; word += 1) orBits(dirty, word, bits);
}

/** Shared, and 0. */
export function sharedMemory(bytes: number): { kind: "shared"; buffer: SharedArrayBuffer } {
  return { kind: "shared", buffer: new SharedArrayBuffer(bytes) };
}
