import { assert } from "../../base/assert.ts";

/**
 * What one write by a vCPU does to a page, in 32-bit words:
 *
 *   word 0        how often the page was written
 *   between       of words at equal distances, every byte grows by one (modulo 256)
 *   last word     how often the page was written
 *
 * The words are read from memory and written back, as a guest's own data would be, so a page that
 * was lost, torn or damaged on its way stays so however long the guest runs on. Growing by one
 * keeps text as compressible, and noise as incompressible, as they were.
 */
export interface Rewrite {
  readonly pageWords: number;
  readonly changedWords: number;
  readonly distanceWords: number;
  /** A one in each byte of the last changed word that changes; in all others all four do. */
  readonly lastStep: number;
}

const COUNTER_BYTES = 8;
const EVERY_BYTE = 0x0101_0101;

export function rewriteOf(pageBytes: number, changedBytes: number): Rewrite {
  assert(changedBytes >= COUNTER_BYTES && changedBytes <= pageBytes, "a write fits its page");
  const pageWords = pageBytes / 4;
  const bodyBytes = changedBytes - COUNTER_BYTES;
  const changedWords = Math.ceil(bodyBytes / 4);
  const distanceWords = Math.floor((pageWords - 2) / Math.max(1, changedWords));
  const lastStep = EVERY_BYTE >>> (8 * (changedWords * 4 - bodyBytes));
  return { pageWords, changedWords, distanceWords, lastStep };
}

/** Writes the page whose first word is `start` once. Runs on the vCPU's thread. */
export function rewritePage(words: Int32Array, start: number, rewrite: Rewrite): void {
  const { pageWords, changedWords, distanceWords, lastStep } = rewrite;
  const last = start + pageWords - 1;
  words[start] = ((words[start] as number) + 1) | 0;
  let at = start + 1;
  for (let i = 1; i < changedWords; i += 1) {
    words[at] = addBytes(words[at] as number, EVERY_BYTE);
    at += distanceWords;
  }
  if (changedWords > 0) words[at] = addBytes(words[at] as number, lastStep);
  words[last] = ((words[last] as number) + 1) | 0;
}

/**
 * Turns words of a page as it was at the start into what `writes` writes made of them: those of
 * `target` from `at` on, `count` of them, which are the page's from word `first` on.
 */
export function replayWrites(
  target: Int32Array,
  { at, first, count }: { at: number; first: number; count: number },
  rewrite: Rewrite,
  writes: number,
): void {
  const { pageWords, changedWords, distanceWords, lastStep } = rewrite;
  const grown = writes & 0xff;
  const from = Math.max(0, Math.ceil((first - 1) / distanceWords));
  for (let i = from; grown !== 0 && i < changedWords; i += 1) {
    const word = 1 + i * distanceWords - first;
    if (word >= count) break;
    const step = i === changedWords - 1 ? lastStep : EVERY_BYTE;
    target[at + word] = addBytes(target[at + word] as number, Math.imul(step, grown));
  }
  if (first === 0) target[at] = writes;
  if (first + count === pageWords) target[at + count - 1] = writes;
}

/** Adds the four bytes of two words, each modulo 256. */
function addBytes(a: number, b: number): number {
  return ((a & 0x7f7f_7f7f) + (b & 0x7f7f_7f7f)) ^ ((a ^ b) & 0x8080_8080);
}
