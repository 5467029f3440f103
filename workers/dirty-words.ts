/**
 * The layout of a bitmap of dirty pages that threads share, and what a worker does with it.
 *
 * Two levels of 32-bit words, touched with `Atomics` only:
 *
 *   words    bit p % 32 of word p / 32        page p is dirty
 *   summary  bit w % 32 of word w / 32        word w may have a bit set
 *
 * A summary bit may be set for an empty word, never clear for a full one. That holds because
 * everybody who sets bits sets the word first and its summary bit after, and everybody who takes
 * bits clears the summary bit first and exchanges the word after.
 */
export interface DirtyWords {
  readonly words: Int32Array;
  readonly summary: Int32Array;
}

export const PAGES_PER_WORD = 32;

export function wordCountFor(pages: number): number {
  return Math.ceil(pages / PAGES_PER_WORD);
}

/** ORs `bits` into word `index` and returns those that were not set before. */
export function orBits(target: DirtyWords, index: number, bits: number): number {
  const before = Atomics.or(target.words, index, bits);
  Atomics.or(target.summary, index >>> 5, 1 << (index & 31));
  return bits & ~before;
}

/** Clears word `index` and returns what it held. */
export function takeWord(source: DirtyWords, index: number): number {
  Atomics.and(source.summary, index >>> 5, ~(1 << (index & 31)));
  return Atomics.exchange(source.words, index, 0);
}

/**
 * Takes the dirty bits of `taken.length` words from `first` on, before the pages are read: a write
 * that comes later sets its bit again. Returns the pages taken.
 */
export function takeWords(source: DirtyWords, first: number, taken: Int32Array): number {
  let pages = 0;
  for (let i = 0; i < taken.length; i += 1) {
    const bits = takeWord(source, first + i);
    taken[i] = bits;
    if (bits !== 0) pages += popcount(bits);
  }
  return pages;
}

/** Puts back bits that were taken but whose pages did not arrive. */
export function undoWords(target: DirtyWords, first: number, taken: Int32Array): void {
  for (let i = 0; i < taken.length; i += 1) {
    const bits = taken[i] as number;
    if (bits !== 0) orBits(target, first + i, bits);
  }
}

/** Bits set in a 32-bit word. */
export function popcount(word: number): number {
  let v = word - ((word >>> 1) & 0x5555_5555);
  v = (v & 0x3333_3333) + ((v >>> 2) & 0x3333_3333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}
