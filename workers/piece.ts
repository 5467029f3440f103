import { assert } from "../base/assert.ts";
import { lowestBit } from "./dirty-words.ts";
import type { Run } from "./encodings/encoding.ts";
import type { Ram } from "./ram.ts";
import { PAGES_AT, PIECE_PAGES_MAX, type Workbench } from "./workbench.ts";

/** Bits of a chunk that were taken, from word `first` on. */
export interface TakenWords {
  readonly first: number;
  readonly words: Int32Array;
}

/**
 * The pages that are looked at together: copied once out of guest memory, dense, in the order in
 * which they were dirty. All that is said about them later is said of this copy.
 */
export class Piece {
  readonly #bench: Workbench;
  /** By their place in the piece. */
  readonly pageNumbers = new Uint32Array(PIECE_PAGES_MAX);
  pages = 0;

  constructor(bench: Workbench) {
    this.#bench = bench;
  }

  /** Whether its pages follow each other in guest memory: they come in rising order. */
  get isOneRun(): boolean {
    const last = this.pages - 1;
    return this.pageNumbers[last] === (this.pageNumbers[0] as number) + last;
  }

  /**
   * Takes the dirty pages that `taken` names: `sendStraight` may send pages at the start of a run
   * as they are (it returns how many), the others are copied. `flush` is called, and must empty the
   * piece, when it has `pieceBytes`, which are the same until it is empty.
   */
  stage(
    taken: TakenWords,
    block: { ram: Ram; pageBytes: number; pageCount: number },
    {
      flush,
      sendStraight,
      pieceBytes,
    }: { flush(): void; sendStraight(run: Run): number; pieceBytes: number },
  ): void {
    const capacity = Math.floor(pieceBytes / block.pageBytes);
    const end = Math.min(block.pageCount, (taken.first + taken.words.length) * 32);
    for (let page = taken.first * 32; ; ) {
      page = nextPage(taken, { from: page, end, isDirty: true });
      if (page === end) return;
      const runEnd = nextPage(taken, { from: page, end, isDirty: false });
      const run = { firstPage: page, pages: runEnd - page };
      // Less than a frame at the end of a chunk may go on in the next one.
      const mayGrow = runEnd === end && run.pages < capacity;
      const sent = mayGrow ? 0 : sendStraight(run);
      if (sent === 0 && this.pages === capacity) flush();
      page += sent > 0 ? sent : this.#copy(run, block, capacity - this.pages);
    }
  }

  /** Copies pages of a run, once: all that follows is of the copy. Returns how many fit. */
  #copy(run: Run, { ram, pageBytes }: { ram: Ram; pageBytes: number }, room: number): number {
    assert(room > 0, "a flush empties the piece");
    const pages = Math.min(run.pages, room);
    const at = PAGES_AT + this.pages * pageBytes;
    const target = this.#bench.bytes.subarray(at, at + pages * pageBytes);
    ram.read(run.firstPage * pageBytes, target);
    for (let index = 0; index < pages; index += 1) {
      this.pageNumbers[this.pages + index] = run.firstPage + index;
    }
    this.pages += pages;
    return pages;
  }
}

/** The first page from `from` on that is dirty, or that is not; `end` if none is before that. */
export function nextPage(
  { first, words }: TakenWords,
  { from, end, isDirty }: { from: number; end: number; isDirty: boolean },
): number {
  for (let page = from; page < end; page += 32 - (page & 31)) {
    const word = words[(page >>> 5) - first] as number;
    const wanted = (isDirty ? word : ~word) >>> (page & 31);
    if (wanted !== 0) return Math.min(end, page + lowestBit(wanted));
  }
  return end;
}
