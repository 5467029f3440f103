import { createSentRecord, type DirtyWords, wordCountFor } from "./dirty-words.ts";
import type { ReceiveBlock, SendBlock } from "./protocol.ts";
import type { RamRegion } from "./ram.ts";

/** Memory of a block, and how it is cut. */
export interface CutRegion extends RamRegion {
  /** Wire page. */
  readonly pageBytes: number;
  readonly pageCount: number;
}

/*
 * What threads are told of a block is made here, whoever tells them: V8 tells objects apart by how they
 * were made, and what a thread has rehearsed with others it compiles anew.
 */

/** At the source. Nothing was sent of it. */
export function sendBlockOf(
  region: CutRegion & { readonly pagesPerChunk: number },
  { dirty, firstKey }: { dirty: DirtyWords; firstKey: number },
): SendBlock {
  const { name, sizeBytes, place, pageBytes, pageCount, pagesPerChunk } = region;
  const known = { name, sizeBytes, place, pageBytes, pageCount, pagesPerChunk };
  return { ...known, dirty, ...createSentRecord(region), firstKey };
}

/** At the destination. Nothing was received of it; `isPristine`: nor written before. */
export function receiveBlockOf(region: CutRegion, isPristine: boolean): ReceiveBlock {
  const { name, sizeBytes, place, pageBytes, pageCount } = region;
  return {
    name,
    sizeBytes,
    place,
    pageBytes,
    pageCount,
    isPristine,
    received: new Int32Array(new SharedArrayBuffer(wordCountFor(pageCount) * 4)),
    generations: new Uint32Array(new SharedArrayBuffer(pageCount * 4)),
  };
}
