import { GIB } from "../base/units.ts";
import { type CutRegion, sendBlockOf } from "./blocks.ts";
import { createDirtyWords, type DirtyWords, orBits } from "./dirty-words.ts";
import type { SendBlock } from "./protocol.ts";
import type { RamPlace } from "./ram.ts";

/** What some blocks have before the pages that are played with: V8 knows numbers of 2^31 and more as others. */
export const FAR_BYTES = 2 * GIB;

/** Memory of a guest that there is not: what a rehearsal plays with. */
export interface PretendRegion extends CutRegion {
  readonly pagesPerChunk: number;
}

/** As a source's thread is given it, with no page dirty. */
export function pretendSendBlock(region: PretendRegion): SendBlock {
  const dirty = createDirtyWords(region.pageCount);
  return sendBlockOf(region, { dirty, firstKey: 0 });
}

/** Marks those pages dirty that have their bit in `bits`, of 32 after the other, in words from `first` on. */
export function markDirty(
  dirty: DirtyWords,
  bits: number,
  { first, words = dirty.words.length - first }: { first: number; words?: number },
): void {
  for (let word = first; word < first + words; word += 1) orBits(dirty, word, bits);
}

export type SharedPlace = Extract<RamPlace, { kind: "shared" }>;

/** It is 0, and takes memory where it is written. Throws RangeError where nobody may have so much. */
export function sharedMemory(bytes: number): SharedPlace {
  return { kind: "shared", buffer: new SharedArrayBuffer(bytes) };
}
