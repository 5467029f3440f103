import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import type { CounterRow } from "./control.ts";
import type { Piece, TakenWords } from "./piece.ts";
import type { SentPages } from "./protocol.ts";
import type { Ram } from "./ram.ts";
import { PAGES_AT, PIECE_BYTES, type Workbench } from "./workbench.ts";

/** A piece that has less room than this is sent first: reading a few pages at a time is slow. */
const ROOM_SHARE_MIN = 1 / 4;

/** What `moveRaw` drops. */
const DROP = 1;
const KEEP = 0;

/** The hash of a zero page in its two halves. */
interface Halves {
  readonly low: number;
  readonly high: number;
}

interface ScannedBlock {
  readonly ram: Ram;
  readonly pageBytes: number;
  readonly pageCount: number;
}

/**
 * Finds the pages of a block that differ from what was last sent of them, by their hashes.
 *
 * A page is read once: the copy that is hashed is the copy that is sent, and its hash is remembered
 * as sent at once. The guest may be writing meanwhile: the copy may be torn, but then so is what
 * the destination gets, and the next scan finds that the page is another. When sending fails, the
 * page is marked dirty, and a page that is marked goes out whatever its hash.
 */
export class PageScanner {
  readonly #bench: Workbench;
  readonly #piece: Piece;
  readonly #counters: CounterRow;
  /** By page size. */
  readonly #zeroHashes = new Map<number, Halves>();

  constructor(bench: Workbench, piece: Piece, counters: CounterRow) {
    this.#bench = bench;
    this.#piece = piece;
    this.#counters = counters;
  }

  /**
   * Adds the pages of a chunk that changed or are marked in `taken` to the piece, marks them in
   * `taken`, and returns how many they are. `flush` is called, and must empty the piece, when it is
   * nearly full.
   */
  stage(
    taken: TakenWords,
    block: ScannedBlock,
    { sent, flush }: { sent: SentPages; flush(): void },
  ): number {
    const capacity = Math.floor(PIECE_BYTES / block.pageBytes);
    const end = Math.min(block.pageCount, (taken.first + taken.words.length) * 32);
    let found = 0;
    for (let page = taken.first * 32; page < end; ) {
      if (capacity - this.#piece.pages < capacity * ROOM_SHARE_MIN) flush();
      const pages = Math.min(end - page, capacity - this.#piece.pages);
      found += this.#scan({ firstPage: page, pages }, taken, block, sent);
      page += pages;
    }
    this.#counters.add("foundPages", found);
    this.#counters.add("foundBytes", found * block.pageBytes);
    return found;
  }

  /** Reads a run of pages behind those of the piece and keeps the ones that must be sent. */
  #scan(
    { firstPage, pages }: { firstPage: number; pages: number },
    taken: TakenWords,
    { ram, pageBytes }: ScannedBlock,
    sent: SentPages,
  ): number {
    const { bytes, flags, hashes } = this.#bench;
    const zero = this.#zeroHash(pageBytes);
    const before = this.#piece.pages;
    const at = PAGES_AT + before * pageBytes;
    const startMs = nowMs();
    ram.read(firstPage * pageBytes, bytes.subarray(at, at + pages * pageBytes));
    this.#bench.hash(before, pages, pageBytes);
    let kept = before;
    for (let index = 0; index < pages; index += 1) {
      const page = firstPage + index;
      const low = (hashes[2 * index] as number) ^ zero.low;
      const high = (hashes[2 * index + 1] as number) ^ zero.high;
      const isChanged = remember(sent, page, low, high);
      flags[index] = isChanged || isMarked(taken, page) ? KEEP : DROP;
      if (flags[index] === DROP) continue;
      mark(taken, page);
      this.#piece.pageNumbers[kept] = page;
      kept += 1;
    }
    if (kept - before < pages) this.#bench.dropFlagged(pages, pageBytes, before);
    this.#piece.pages = kept;
    this.#counters.add("scannedBytes", pages * pageBytes);
    this.#counters.add("scanMs", nowMs() - startMs);
    return kept - before;
  }

  #zeroHash(pageBytes: number): Halves {
    const known = this.#zeroHashes.get(pageBytes);
    if (known !== undefined) return known;
    assert(this.#piece.pages === 0, "a zero page is hashed where no page lies");
    this.#bench.piece(pageBytes).fill(0);
    this.#bench.hash(0, 1, pageBytes);
    const [low = 0, high = 0] = this.#bench.hashes;
    this.#zeroHashes.set(pageBytes, { low, high });
    return { low, high };
  }
}

/** Writes down what is about to be sent; whether it is something else than was sent before. */
function remember({ hashes, content }: SentPages, page: number, low: number, high: number) {
  if (hashes[2 * page] === low && hashes[2 * page + 1] === high) return false;
  hashes[2 * page] = low;
  hashes[2 * page + 1] = high;
  const word = page >>> 5;
  const bit = 1 << (page & 31);
  const bits = content[word] as number;
  content[word] = (low | high) === 0 ? bits & ~bit : bits | bit;
  return true;
}

function isMarked({ first, words }: TakenWords, page: number): boolean {
  return (((words[(page >>> 5) - first] as number) >>> (page & 31)) & 1) !== 0;
}

function mark({ first, words }: TakenWords, page: number): void {
  const index = (page >>> 5) - first;
  words[index] = (words[index] as number) | (1 << (page & 31));
}
