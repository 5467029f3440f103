import { assert } from "../base/assert.ts";
import {
  bitsBetween,
  createDirtyWords,
  type DirtyWords,
  lowestBit,
  orBits,
  PAGES_PER_WORD,
  popcount,
  takeMarks,
  WORDS_PER_GROUP,
  wordCountFor,
} from "../workers/dirty-words.ts";
import type { DirtyLog } from "./dirty-log.ts";

/**
 * The engine's record of the pages of one block that still have to be sent, in wire pages.
 *
 * One thread, the coordinator, calls everything here. Workers get `words` and meanwhile take a
 * chunk's bits, or put them back, with `takeWords` and `undoWords`: words from
 * `chunk * pagesPerChunk / 32` on, in the last chunk only up to the end.
 *
 * Scans read with plain loads, for `Atomics.load` costs ten times as much and a terabyte has 262144
 * summary words. That is sound: the coordinator sees what it set itself in `sync`, and bits of
 * others as soon as it learned of them (a worker's answer that it put bits back, a host's answer
 * that it paused). Without such an order, a load may be late: a chunk is then found although its
 * bits were just taken, or a mark is found by the next scan instead of this one. Nothing is decided
 * by such a load alone, all bits move with `Atomics`.
 */
export class DirtyBitmap {
  readonly words: DirtyWords;
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesPerChunk: number;
  readonly chunkCount: number;
  readonly #wordsPerChunk: number;
  #visitedWords = 0;

  /** A clean bitmap. `pageBytes` is the wire page's size; no word may belong to two chunks. */
  constructor(size: { pageCount: number; pageBytes: number; pagesPerChunk: number }) {
    const { pageCount, pageBytes, pagesPerChunk } = size;
    assert(Number.isInteger(pageCount) && pageCount > 0, "a block has pages");
    assert(Number.isInteger(Math.log2(pageBytes)), "a wire page is a power of two");
    assert(pagesPerChunk > 0 && pagesPerChunk % PAGES_PER_WORD === 0, "a chunk is whole words");
    this.words = createDirtyWords(pageCount);
    this.pageBytes = pageBytes;
    this.pageCount = pageCount;
    this.pagesPerChunk = pagesPerChunk;
    this.chunkCount = Math.ceil(pageCount / pagesPerChunk);
    this.#wordsPerChunk = pagesPerChunk / PAGES_PER_WORD;
  }

  /**
   * Words and summary words read so far by walks, counts and syncs. What they cost is in proportion
   * to this, so that a test can hold the proportion without a clock.
   */
  get visitedWords(): number {
    return this.#visitedWords;
  }

  /** Makes every page dirty. No worker may take or put back meanwhile. */
  fill(): void {
    const { words, summary } = this.words;
    words.fill(-1);
    words[words.length - 1] = bitsBetween(0, this.pageCount - (words.length - 1) * PAGES_PER_WORD);
    summary.fill(-1);
    summary[summary.length - 1] = bitsBetween(
      0,
      words.length - (summary.length - 1) * WORDS_PER_GROUP,
    );
  }

  /** Makes every page of a chunk dirty, where nobody knows which of them were. */
  fillChunk(chunk: number): void {
    assert(chunk >= 0 && chunk < this.chunkCount, "a chunk lies in its block");
    const first = chunk * this.#wordsPerChunk;
    const end = Math.min(first + this.#wordsPerChunk, this.words.words.length);
    for (let index = first; index < end; index += 1) {
      orBits(this.words, index, bitsBetween(0, this.pageCount - index * PAGES_PER_WORD));
    }
  }

  /**
   * Moves the bits of all logs of this block here, while hosts keep marking, and returns the exact
   * number of pages that were clean and are dirty now. A log's pages may be of another size than
   * ours: a larger one makes all our pages in it dirty, smaller ones make the page around them
   * dirty. A bit past the block's end is a bug of the host: it asserts, after all others moved.
   */
  sync(logs: readonly DirtyLog[]): number {
    let pages = 0;
    for (const log of logs) pages += this.#moveFrom(log);
    return pages;
  }

  /**
   * Makes whole stretches of `pages` dirty where any page of one is, and returns how many were clean. No
   * worker may take or put back meanwhile.
   */
  widen(pages: number): number {
    assert(
      pages % PAGES_PER_WORD === 0 && this.pageCount % pages === 0,
      "stretches are whole words",
    );
    const { length } = this.words.words;
    let added = 0;
    let word = this.#nextDirtyWord(0, length);
    while (word !== -1) {
      const first = word * PAGES_PER_WORD - ((word * PAGES_PER_WORD) % pages);
      added += this.#addRange(first, first + pages);
      word = this.#nextDirtyWord((first + pages) / PAGES_PER_WORD, length);
    }
    return added;
  }

  /** The first chunk from `from` on with a dirty page, or -1. */
  nextDirtyChunk(from: number): number {
    assert(from >= 0 && from <= this.chunkCount, "a walk goes on from a chunk or ends");
    if (from === this.chunkCount) return -1;
    const word = this.#nextDirtyWord(from * this.#wordsPerChunk, this.words.words.length);
    return word === -1 ? -1 : Math.floor(word / this.#wordsPerChunk);
  }

  isChunkDirty(chunk: number): boolean {
    assert(chunk >= 0 && chunk < this.chunkCount, "a chunk lies in its block");
    const first = chunk * this.#wordsPerChunk;
    const end = Math.min(first + this.#wordsPerChunk, this.words.words.length);
    return this.#nextDirtyWord(first, end) !== -1;
  }

  /** Dirty pages of one chunk now, as `dirtyCount` counts them. */
  dirtyCountOf(chunk: number): number {
    assert(chunk >= 0 && chunk < this.chunkCount, "a chunk lies in its block");
    const first = chunk * this.#wordsPerChunk;
    const end = Math.min(first + this.#wordsPerChunk, this.words.words.length);
    let pages = 0;
    for (let index = first; index < end; index += 1) {
      pages += popcount(this.words.words[index] as number);
    }
    this.#visitedWords += end - first;
    return pages;
  }

  /** Pages dirty now. While workers take, pages that are just being taken may count or not. */
  dirtyCount(): number {
    const { words, summary } = this.words;
    const groups = summary.length;
    let pages = 0;
    for (
      let group = this.#nextGroup(summary, 0, groups);
      group < groups;
      group = this.#nextGroup(summary, group + 1, groups)
    ) {
      for (let marks = summary[group] as number; marks !== 0; marks &= marks - 1) {
        pages += popcount(words[group * WORDS_PER_GROUP + lowestBit(marks)] as number);
        this.#visitedWords += 1;
      }
    }
    return pages;
  }

  /** The first word in [from, end) with a dirty page, or -1. */
  #nextDirtyWord(from: number, end: number): number {
    const { summary } = this.words;
    const groups = Math.ceil(end / WORDS_PER_GROUP);
    for (
      let group = this.#nextGroup(summary, from >>> 5, groups);
      group < groups;
      group = this.#nextGroup(summary, group + 1, groups)
    ) {
      const base = group * WORDS_PER_GROUP;
      const found = this.#nextMarkedWord(base, bitsBetween(from - base, end - base));
      if (found !== -1) return found;
    }
    return -1;
  }

  /** The first dirty word of the group at `base` among those that `mask` names, or -1. */
  #nextMarkedWord(base: number, mask: number): number {
    const { words, summary } = this.words;
    for (let marks = (summary[base >>> 5] as number) & mask; marks !== 0; marks &= marks - 1) {
      this.#visitedWords += 1;
      const index = base + lowestBit(marks);
      if (words[index] !== 0) return index;
    }
    return -1;
  }

  #moveFrom(log: DirtyLog): number {
    const ratio = this.#logPageRatio(log);
    const groups = log.summary.length;
    let pages = 0;
    let strayBits = 0;
    for (
      let group = this.#nextGroup(log.summary, 0, groups);
      group < groups;
      group = this.#nextGroup(log.summary, group + 1, groups)
    ) {
      let sameMarks = 0;
      for (let marks = takeMarks(log, group, -1); marks !== 0; marks &= marks - 1) {
        const index = group * WORDS_PER_GROUP + lowestBit(marks);
        if (index >= log.words.length) break;
        const found = Atomics.exchange(log.words, index, 0);
        const bits = found & bitsBetween(0, log.pageCount - index * PAGES_PER_WORD);
        strayBits |= found & ~bits;
        this.#visitedWords += 1;
        if (bits === 0) continue;
        if (ratio === 1) {
          pages += popcount(bits & ~Atomics.or(this.words.words, index, bits));
          sameMarks |= marks & -marks;
        } else if (ratio > 1) {
          pages += this.#addLarger(index, bits, ratio);
        } else {
          pages += this.#addSmaller(index, bits, ratio);
        }
      }
      // Pages of the same size, the usual case, share one mark of all words: half of the time.
      if (sameMarks !== 0) Atomics.or(this.words.summary, group, sameMarks);
    }
    assert(strayBits === 0, "a log marks no page past the end of its block");
    return pages;
  }

  /** Bytes of a log page per byte of a wire page: a power of two, below 1 for smaller pages. */
  #logPageRatio(log: DirtyLog): number {
    const ratio = log.pageBytes / this.pageBytes;
    assert(Number.isInteger(Math.log2(ratio)), "page sizes differ by a power of two");
    assert(log.pageCount === Math.ceil(this.pageCount / ratio), "a log covers just its block");
    assert(log.words.length >= wordCountFor(log.pageCount), "a log has a bit for every page");
    assert(
      log.summary.length >= wordCountFor(wordCountFor(log.pageCount)),
      "a log has its summary",
    );
    return ratio;
  }

  #addLarger(index: number, bits: number, ratio: number): number {
    let pages = 0;
    for (let rest = bits; rest !== 0; rest &= rest - 1) {
      const first = (index * PAGES_PER_WORD + lowestBit(rest)) * ratio;
      pages += this.#addRange(first, Math.min(first + ratio, this.pageCount));
    }
    return pages;
  }

  #addRange(first: number, end: number): number {
    let pages = 0;
    for (let index = first >>> 5; index * PAGES_PER_WORD < end; index += 1) {
      const base = index * PAGES_PER_WORD;
      pages += popcount(orBits(this.words, index, bitsBetween(first - base, end - base)));
    }
    return pages;
  }

  /** A word of smaller pages folds into one of ours: 32 of them are at most 16 pages in a row. */
  #addSmaller(index: number, bits: number, ratio: number): number {
    const first = Math.floor(index * PAGES_PER_WORD * ratio);
    let folded = 0;
    for (let rest = bits; rest !== 0; rest &= rest - 1) {
      folded |= 1 << ((first & 31) + Math.floor(lowestBit(rest) * ratio));
    }
    return popcount(orBits(this.words, first >>> 5, folded));
  }

  /** The first group in [from, end) with a mark, or `end`. Tight: most of a walk is spent here. */
  #nextGroup(summary: Int32Array, from: number, end: number): number {
    let group = from;
    while (group < end && summary[group] === 0) group += 1;
    this.#visitedWords += Math.min(group + 1, end) - from;
    return group;
  }
}
