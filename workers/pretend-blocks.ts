import { createSentRecord, orBits, wordCountFor } from "./dirty-words.ts";
import type { ReceiveBlock, SendBlock } from "./protocol.ts";
import type { RamPlace } from "./ram.ts";

/** A block of a guest that there is not: what a rehearsal plays with. */
export interface PretendBlock {
  readonly name: string;
  readonly place: RamPlace;
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesPerChunk: number;
}

/** As a source's thread is given it, with no page dirty. */
export function sendBlockOf(block: PretendBlock): SendBlock {
  const { pageBytes, pageCount } = block;
  const dirty = { words: words(wordCountFor(pageCount)), summary: words(1) };
  const sizeBytes = pageBytes * pageCount;
  return { ...block, sizeBytes, dirty, ...createSentRecord(block), firstKey: 0 };
}

/** As a destination's thread is given it; `isPristine`: nothing was written there before. */
export function receiveBlockOf(
  { pagesPerChunk: _, ...block }: PretendBlock,
  isPristine: boolean,
): ReceiveBlock {
  const { pageBytes, pageCount } = block;
  return {
    ...block,
    sizeBytes: pageBytes * pageCount,
    isPristine,
    received: words(wordCountFor(pageCount)),
    generations: new Uint32Array(words(pageCount).buffer),
  };
}

/** Marks those pages dirty that have their bit in `bits`, of 32 after the other. */
export function markDirty({ dirty }: Pick<SendBlock, "dirty">, bits: number): void {
  for (let word = 0; word < dirty.words.length; word += 1) orBits(dirty, word, bits);
}

/** Shared, and 0. */
export function sharedMemory(bytes: number): { kind: "shared"; buffer: SharedArrayBuffer } {
  return { kind: "shared", buffer: new SharedArrayBuffer(bytes) };
}

function words(count: number): Int32Array {
  return new Int32Array(new SharedArrayBuffer(count * 4));
}
