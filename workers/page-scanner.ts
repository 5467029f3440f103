import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import type { CounterRow } from "./control.ts";
import { nextPage, type Piece, type TakenWords } from "./piece.ts";
import type { ScanPart, ScanTables } from "./protocol.ts";
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
   * Adds the pages of a chunk (of the part that is asked for) that changed, and those that are
   * marked in `taken`, to the piece. Marks them in `taken` and returns how many they are. `flush` is
   * called, and must empty the piece, when it is nearly full.
   */
  stage(
    taken: TakenWords,
    block: ScannedBlock,
    { tables, part, flush }: { tables: ScanTables; part: ScanPart; flush(): void },
  ): number {
    const capacity = Math.floor(PIECE_BYTES / block.pageBytes);
    const end = Math.min(block.pageCount, (taken.first + taken.words.length) * 32);
    const wanted = wantedOf(taken, tables, part);
    let found = 0;
    for (let page = taken.first * 32; ; ) {
      page = nextPage(wanted, { from: page, end, isDirty: true });
      if (page === end) break;
      const runEnd = nextPage(wanted, { from: page, end, isDirty: false });
      if (capacity - this.#piece.pages < capacity * ROOM_SHARE_MIN) flush();
      const pages = Math.min(runEnd - page, capacity - this.#piece.pages);
      found += this.#scan({ firstPage: page, pages }, taken, block, tables);
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
    tables: ScanTables,
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
      const isChanged = remember(tables, page, low, high);
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
function remember({ hashes, content }: ScanTables, page: number, low: number, high: number) {
  if (hashes[2 * page] === low && hashes[2 * page + 1] === high) return false;
  hashes[2 * page] = low;
  hashes[2 * page + 1] = high;
  const word = page >>> 5;
  const bit = 1 << (page & 31);
  const bits = content[word] as number;
  content[word] = (low | high) === 0 ? bits & ~bit : bits | bit;
  return true;
}

/** A bit for each page of the chunk that must be read. */
function wantedOf({ first, words }: TakenWords, tables: ScanTables, part: ScanPart): TakenWords {
  return {
    first,
    words: words.map((marked, index) => {
      if (part === "all") return -1;
      const word = first + index;
      const likely = (tables.mapped?.[word] ?? -1) | (tables.content[word] as number);
      return marked | (part === "likely" ? likely : ~likely);
    }),
  };
}

function isMarked({ first, words }: TakenWords, page: number): boolean {
  return (((words[(page >>> 5) - first] as number) >>> (page & 31)) & 1) !== 0;
}

function mark({ first, words }: TakenWords, page: number): void {
  const index = (page >>> 5) - first;
  words[index] = (words[index] as number) | (1 << (page & 31));
}
