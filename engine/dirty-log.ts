import { assert } from "../base/assert.ts";
import { createDirtyWords, type DirtyWords, orBits, wordCountFor } from "../workers/dirty-words.ts";

/**
 * A host's record of the pages of one block written since it was last read. Plain data over
 * SharedArrayBuffers, so vCPU threads mark it directly. Several logs may name the same block (a
 * VMM's and a vhost backend's, say); the engine ORs them.
 *
 * A host writes memory first and marks after, and calls itself paused only when both are done.
 */
export interface DirtyLog extends DirtyWords {
  readonly kind?: "bitmap";
  /** The block's name. */
  readonly block: string;
  readonly pageBytes: number;
  readonly pageCount: number;
}

/**
 * What a host gives for a block whose writers tell nobody what they write: the engine finds it by
 * reading all of the block in every round and comparing a hash of each page with that of what was
 * last sent. It costs a pass over the block, also while the guest is paused. A block may have
 * bitmaps beside it.
 */
export interface ScanLog {
  readonly kind: "scan";
  /** The block's name. */
  readonly block: string;
  /** Where the kernel can tell which memory was never used; see `PagePresence`. */
  readonly presence?: PagePresence;
}

/**
 * The processes that map the file in which a block lies, above all the hypervisor. Where their
 * `/proc/PID/pagemap` can be read, and accounts for all that the file holds, memory that none of
 * them ever touched is not read again. Where not, all is read: it never fails and never loses a
 * write, whatever is named here.
 */
export interface PagePresence {
  readonly pids: readonly number[];
}

/** A new, clean log of `sizeBytes / pageBytes` pages. */
export function createDirtyLog(
  block: string,
  size: { sizeBytes: number; pageBytes: number },
): DirtyLog {
  assert(size.sizeBytes % size.pageBytes === 0, "a block is whole pages");
  const pageCount = size.sizeBytes / size.pageBytes;
  return { block, pageBytes: size.pageBytes, pageCount, ...createDirtyWords(pageCount) };
}

/** Why a host's log cannot tell of its block, or null. */
export function logProblem(
  log: DirtyLog | ScanLog,
  block: { readonly name: string; readonly sizeBytes: number },
): string | null {
  if (log.kind === "scan") return null;
  const { pageBytes, pageCount, words, summary } = log;
  const isWhole = pageCount === Math.ceil(block.sizeBytes / pageBytes);
  if (!(Number.isInteger(Math.log2(pageBytes)) && isWhole)) {
    return `a dirty log of "${block.name}" with ${pageCount} pages of ${pageBytes} bytes: the block has ${block.sizeBytes} bytes`;
  }
  const wordCount = wordCountFor(pageCount);
  return words?.length >= wordCount && summary?.length >= wordCountFor(wordCount)
    ? null
    : `a dirty log of "${block.name}" that has not one bit for each page: use createDirtyLog`;
}

/** Marks a page that was written. Callable from any thread. */
export function markDirty(log: DirtyLog, page: number): void {
  assert(page >= 0 && page < log.pageCount, "a marked page lies in its block");
  orBits(log, page >>> 5, 1 << (page & 31));
}
