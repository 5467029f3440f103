import { assert } from "../base/assert.ts";

/**
 * The layout of a bitmap of dirty pages that threads share, and what a worker does with it.
 *
 * Two levels of 32-bit words, written with `Atomics` only:
 *
 *   words    bit p % 32 of word p / 32        page p is dirty
 *   summary  bit w % 32 of word w / 32        word w may have a bit set (its mark)
 *
 * One summary word stands over a group of 32 words, 1024 pages.
 *
 * A mark may be set for an empty word, never clear for a full one. That holds because everybody
 * who sets bits sets the word first and its mark after, and everybody who takes bits clears the
 * mark first and exchanges the word after. In between, the bits belong to the one who is about to
 * mark or to exchange them, and nobody else needs to find them.
 */
export interface DirtyWords {
  readonly words: Int32Array;
  readonly summary: Int32Array;
}

export const PAGES_PER_WORD = 32;
export const WORDS_PER_GROUP = 32;

export function wordCountFor(pages: number): number {
  return Math.ceil(pages / PAGES_PER_WORD);
}

/** Words are found by `page >>> 5`, in 32 bits: 16 TiB of 4 KiB pages in one block. */
const PAGE_COUNT_MAX = 2 ** 32;

/** Clean words and their summary for `pages` pages. */
export function createDirtyWords(pages: number): DirtyWords {
  assert(pages <= PAGE_COUNT_MAX, "a page number fits 32 bits");
  const wordCount = wordCountFor(pages);
  return {
    words: new Int32Array(new SharedArrayBuffer(wordCount * 4)),
    summary: new Int32Array(new SharedArrayBuffer(wordCountFor(wordCount) * 4)),
  };
}

/** What is kept of a block's sending besides what is dirty: see `SendBlock`. Nothing was sent. */
export function createSentRecord(size: { pageCount: number; pagesPerChunk: number }): {
  readonly sent: Int32Array;
  readonly senders: Int32Array;
} {
  const chunks = Math.ceil(size.pageCount / size.pagesPerChunk);
  return {
    sent: new Int32Array(new SharedArrayBuffer(wordCountFor(size.pageCount) * 4)),
    senders: new Int32Array(new SharedArrayBuffer(chunks * 4)),
  };
}

/** ORs `bits` into word `index` and returns those that were not set before. */
export function orBits(target: DirtyWords, index: number, bits: number): number {
  // Not even bits that are set already may be left out: this is also the barrier between the write
  // to a guest page and the next take of its bit.
  const before = Atomics.or(target.words, index, bits);
  const mark = 1 << (index & 31);
  // A mark found set may stay: whoever clears it later takes the word later still, with these bits.
  if ((Atomics.load(target.summary, index >>> 5) & mark) === 0) {
    Atomics.or(target.summary, index >>> 5, mark);
  }
  return bits & ~before;
}

/** Clears word `index` and returns what it held. */
export function takeWord(source: DirtyWords, index: number): number {
  Atomics.and(source.summary, index >>> 5, ~(1 << (index & 31)));
  return Atomics.exchange(source.words, index, 0);
}

/**
 * Clears those marks of a group that `mask` names, and returns the ones that were set. The caller
 * must exchange every word whose mark it got.
 */
export function takeMarks(source: DirtyWords, group: number, mask: number): number {
  return Atomics.and(source.summary, group, ~mask) & mask;
}

/**
 * Takes the dirty bits of `taken.length` words from `first` on, before the pages are read: a write
 * that comes later sets its bit again. Returns the pages taken.
 */
export function takeWords(source: DirtyWords, first: number, taken: Int32Array): number {
  const end = first + taken.length;
  assert(first >= 0 && end <= source.words.length, "words to take lie in their bitmap");
  taken.fill(0);
  let pages = 0;
  for (let group = first >>> 5; group * WORDS_PER_GROUP < end; group += 1) {
    const base = group * WORDS_PER_GROUP;
    let marks = takeMarks(source, group, bitsBetween(first - base, end - base));
    for (; marks !== 0; marks &= marks - 1) {
      const index = base + lowestBit(marks);
      const bits = Atomics.exchange(source.words, index, 0);
      taken[index - first] = bits;
      pages += popcount(bits);
    }
  }
  return pages;
}

/**
 * Puts back bits that were taken but whose pages did not arrive. Returns the pages that are dirty
 * by that: those which were written again meanwhile are dirty (and counted) already.
 */
export function undoWords(target: DirtyWords, first: number, taken: Int32Array): number {
  assert(first >= 0 && first + taken.length <= target.words.length, "taken words fit their bitmap");
  let pages = 0;
  for (let i = 0; i < taken.length; i += 1) {
    const bits = taken[i] as number;
    if (bits !== 0) pages += popcount(orBits(target, first + i, bits));
  }
  return pages;
}

/** Bits set in a 32-bit word. */
export function popcount(word: number): number {
  let v = word - ((word >>> 1) & 0x5555_5555);
  v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}

/** The place of the lowest bit set in a word that is not 0. */
export function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}

/** A word with the bits from `from` to just before `to` set; what lies outside of it is cut off. */
export function bitsBetween(from: number, to: number): number {
  const notBelow = from <= 0 ? -1 : from >= 32 ? 0 : -1 << from;
  const below = to >= 32 ? -1 : to <= 0 ? 0 : (1 << to) - 1;
  return notBelow & below;
}
