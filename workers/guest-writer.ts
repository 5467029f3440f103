import { assert } from "../base/assert.ts";
import type { CounterRow } from "./control.ts";
import type { Ram } from "./ram.ts";
import { PIECE_BYTES, type Workbench } from "./workbench.ts";

/** A block of the destination as a receive worker needs to know it. */
export interface WritableBlock {
  readonly ram: Ram;
  readonly pageBytes: number;
  readonly pageCount: number;
  /** No byte of it was written before this migration: what was not received reads as zero. */
  readonly isPristine: boolean;
  /** Bit p: page p was written by this migration. */
  readonly received: Int32Array;
}

/**
 * Places pages in one block. Zero pages of memory that was never written are not touched, so that
 * they take no memory; elsewhere they end up zero, and what is zero already is left alone (reading
 * a hole of a file makes no page, writing would).
 */
export class GuestWriter {
  readonly #block: WritableBlock;
  readonly #counters: CounterRow;
  readonly #bench: Workbench;
  readonly #zeros: Uint8Array;

  constructor(block: WritableBlock, counters: CounterRow, bench: Workbench) {
    this.#block = block;
    this.#counters = counters;
    this.#bench = bench;
    this.#zeros = new Uint8Array(block.pageBytes);
  }

  write(firstPage: number, pages: number, source: Uint8Array): void {
    const { ram, pageBytes } = this.#block;
    assert(source.length === pages * pageBytes, "a run has whole pages");
    ram.write(firstPage * pageBytes, source);
    this.markReceived(firstPage, pages);
  }

  /** Where the pages of a run can be received without a copy, else null. Then `markReceived`. */
  view(firstPage: number, pages: number): Uint8Array | null {
    const { ram, pageBytes } = this.#block;
    return ram.view(firstPage * pageBytes, pages * pageBytes);
  }

  clear(firstPage: number, pages: number): void {
    const end = firstPage + pages;
    let untouched = 0;
    for (let page = firstPage; page < end; ) {
      let next = page + 1;
      if (this.#readsAsZero(page)) {
        untouched += 1;
      } else {
        const piecePages = Math.floor(PIECE_BYTES / this.#block.pageBytes);
        while (next < end && next - page < piecePages && !this.#readsAsZero(next)) next += 1;
        this.#clearTouched(page, next - page);
      }
      page = next;
    }
    this.#counters.add("untouched", untouched);
  }

  markReceived(firstPage: number, pages: number): void {
    const { received } = this.#block;
    for (let page = firstPage; page < firstPage + pages; page += 1) {
      Atomics.or(received, page >>> 5, 1 << (page & 31));
    }
  }

  #readsAsZero(page: number): boolean {
    if (!this.#block.isPristine) return false;
    return (Atomics.load(this.#block.received, page >>> 5) & (1 << (page & 31))) === 0;
  }

  #clearTouched(firstPage: number, pages: number): void {
    const { ram, pageBytes } = this.#block;
    ram.read(firstPage * pageBytes, this.#bench.piece(pages * pageBytes));
    if (this.#bench.scanZero(pages, pageBytes) === pages) return;
    for (let page = 0; page < pages; page += 1) {
      if (this.#bench.flags[page] === 0) ram.write((firstPage + page) * pageBytes, this.#zeros);
    }
  }
}
