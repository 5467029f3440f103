import { assert } from "../base/assert.ts";
import { corrupt } from "../channels/frame.ts";
import type { CounterRow } from "./control.ts";
import { bitsBetween, PAGES_PER_WORD } from "./dirty-words.ts";
import type { Run } from "./encodings/encoding.ts";
import {
  ARMED,
  claimPages,
  DROPPED,
  type FaultDoor,
  isClaimed,
  markPresent,
} from "./fault-door.ts";
import type { Ram } from "./ram.ts";
import { PIECE_BYTES, type Workbench } from "./workbench.ts";

const NOTHING: readonly Run[] = [];

/** A block of the destination as a receive worker needs to know it. */
export interface WritableBlock {
  readonly ram: Ram;
  readonly pageBytes: number;
  readonly pageCount: number;
  /** No byte of it was written before this migration: what was not received reads as zero. */
  readonly isPristine: boolean;
  /** Bit p: page p was written by this migration. */
  readonly received: Int32Array;
  /** By page: which version lies there. */
  readonly generations: Uint32Array;
  /** Where the guest may run before all its pages are there. */
  readonly door?: { readonly door: FaultDoor; readonly block: number } | undefined;
  /** For messages. */
  readonly channel: number;
}

/** The deltas of a run, as its payload has them. Nothing of it was checked. */
export interface RunDeltas {
  /** By page of the run: the generation that its delta is based on. */
  readonly generation: (page: number) => number;
  /** By unit of the run: how many bytes its delta takes. */
  readonly length: (unit: number) => number;
  readonly units: number;
  readonly deltas: Uint8Array;
}

/**
 * Places pages in one block. In post-copy only pages that are missing, each of them once: what is
 * there already is the guest's, and what comes of it is dropped and counted. Zero pages of memory
 * that was never written are not touched, so that they take no memory; elsewhere they end up zero, and what is zero already is left alone (reading
 * a hole of a file makes no page, writing would).
 */
export class GuestWriter {
  readonly #block: WritableBlock;
  readonly #counters: CounterRow;
  readonly #bench: Workbench;
  readonly #zeros: Uint8Array;
  #generation = 0;

  constructor(block: WritableBlock, counters: CounterRow, bench: Workbench) {
    this.#block = block;
    this.#counters = counters;
    this.#bench = bench;
    this.#zeros = new Uint8Array(block.pageBytes);
  }

  /** Of what is placed from now on. */
  set generation(generation: number) {
    this.#generation = generation;
  }

  get pageBytes(): number {
    return this.#block.pageBytes;
  }

  write(firstPage: number, pages: number, source: Uint8Array): void {
    const { ram, pageBytes } = this.#block;
    assert(source.length === pages * pageBytes, "a run has whole pages");
    for (const run of this.#claim(firstPage, pages)) {
      const at = (run.firstPage - firstPage) * pageBytes;
      this.begin(run.firstPage, run.pages);
      ram.write(run.firstPage * pageBytes, source.subarray(at, at + run.pages * pageBytes));
      this.markReceived(run.firstPage, run.pages);
    }
  }

  /**
   * Pages are about to be written. Should that break off with the channel, nobody may hold them to
   * be untouched, or to be the version that they were.
   */
  begin(firstPage: number, pages: number): void {
    const { received, generations } = this.#block;
    const end = firstPage + pages;
    generations.fill(0, firstPage, end);
    for (let index = firstPage >>> 5; index * PAGES_PER_WORD < end; index += 1) {
      const base = index * PAGES_PER_WORD;
      Atomics.or(received, index, bitsBetween(firstPage - base, end - base));
    }
  }

  /**
   * Where the pages of a run can be received without a copy, else null: `begin`, `markReceived`. Not in
   * post-copy: who claims a page before its bytes are here holds up whoever comes with them meanwhile,
   * and loses the page when the channel breaks off.
   */
  view(firstPage: number, pages: number): Uint8Array | null {
    const { ram, pageBytes } = this.#block;
    return this.#isGuarded ? null : ram.view(firstPage * pageBytes, pages * pageBytes);
  }

  clear(firstPage: number, pages: number): void {
    for (const run of this.#claim(firstPage, pages)) {
      this.#clear(run.firstPage, run.pages);
      this.#markPresent(run.firstPage, run.pages);
    }
  }

  #clear(firstPage: number, pages: number): void {
    const end = firstPage + pages;
    this.#block.generations.fill(this.#generation, firstPage, end);
    if (this.#allReadAsZero(firstPage, end)) {
      this.#counters.add("untouched", pages);
      return;
    }
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

  /**
   * Changes the pages of a run by their deltas. Throws FRAME_CORRUPT, before anything of the run is
   * written, when a delta is based on another version than lies here, or is none. What lies here may
   * be another version when a lane was first: the page is claimed then, and its delta dropped.
   */
  applyDeltas({ firstPage, pages }: Run, given: RunDeltas): void {
    const { ram, pageBytes, generations, channel } = this.#block;
    for (let page = 0; page < pages; page += 1) {
      const based = given.generation(page);
      const isBase = based !== 0 && generations[firstPage + page] === based;
      if (!isBase && !this.#isClaimed(firstPage + page)) {
        throw corrupt(channel, "generation of a delta", based);
      }
    }
    const bytes = pages * pageBytes;
    assert(bytes <= PIECE_BYTES, "a run of deltas has a limit");
    let deltaBytes = 0;
    for (let unit = 0; unit < given.units; unit += 1) {
      this.#bench.lengths[unit] = given.length(unit);
      deltaBytes += given.length(unit);
    }
    if (deltaBytes !== given.deltas.length) throw corrupt(channel, "bytes of deltas", deltaBytes);
    this.#bench.deltas.set(given.deltas);
    const target = this.#bench.piece(bytes);
    ram.read(firstPage * pageBytes, target);
    if (!this.#bench.decodeDeltas(given.units, deltaBytes)) {
      throw corrupt(channel, "delta", "not decodable");
    }
    this.write(firstPage, pages, target);
  }

  /** The pages that were begun are there. */
  markReceived(firstPage: number, pages: number): void {
    this.#block.generations.fill(this.#generation, firstPage, firstPage + pages);
    this.#markPresent(firstPage, pages);
  }

  /** Whether the guest may run here before all its pages are there. */
  get #isGuarded(): boolean {
    const { door } = this.#block;
    return door !== undefined && Atomics.load(door.door.words, ARMED) !== 0;
  }

  /** Whether somebody else has brought the page in post-copy, or is about to have. */
  #isClaimed(page: number): boolean {
    const { door } = this.#block;
    if (door === undefined || !this.#isGuarded) return false;
    return isClaimed(door.door, door.block, page);
  }

  /** The parts of a run that are this thread's to place; outside of post-copy all of it. */
  #claim(firstPage: number, pages: number): readonly Run[] {
    const { door } = this.#block;
    if (door === undefined || !this.#isGuarded) return [{ firstPage, pages }];
    if (pages === 1) return this.#claimOne(door.door, door.block, firstPage);
    const runs: { firstPage: number; pages: number }[] = [];
    const end = firstPage + pages;
    let won = 0;
    for (let page = firstPage; page < end; page = (Math.floor(page / 32) + 1) * 32) {
      const base = Math.floor(page / 32) * 32;
      const mask = bitsBetween(page - base, end - base);
      const bits = claimPages(door.door, door.block, page >>> 5, mask);
      for (let at = page; at < Math.min(end, base + 32); at += 1) {
        if ((bits & (1 << (at & 31))) === 0) continue;
        won += 1;
        const last = runs.at(-1);
        if (last !== undefined && last.firstPage + last.pages === at) last.pages += 1;
        else runs.push({ firstPage: at, pages: 1 });
      }
    }
    if (won < pages) Atomics.add(door.door.words, DROPPED, pages - won);
    return runs;
  }

  /** What a guest waits for, as a rule. */
  #claimOne(door: FaultDoor, block: number, page: number): readonly Run[] {
    if (claimPages(door, block, page >>> 5, 1 << (page & 31)) !== 0) {
      return [{ firstPage: page, pages: 1 }];
    }
    Atomics.add(door.words, DROPPED, 1);
    return NOTHING;
  }

  #markPresent(firstPage: number, pages: number): void {
    const { door } = this.#block;
    if (door === undefined || !this.#isGuarded) return;
    const end = firstPage + pages;
    for (let index = firstPage >>> 5; index * PAGES_PER_WORD < end; index += 1) {
      const base = index * PAGES_PER_WORD;
      markPresent(door.door, door.block, index, bitsBetween(firstPage - base, end - base));
    }
  }

  /** Told word by word: the usual case, for most of a guest's zero pages come in its first round. */
  #allReadAsZero(firstPage: number, end: number): boolean {
    const { isPristine, received } = this.#block;
    if (!isPristine) return false;
    for (let index = firstPage >>> 5; index * PAGES_PER_WORD < end; index += 1) {
      const base = index * PAGES_PER_WORD;
      const mask = bitsBetween(firstPage - base, end - base);
      if ((Atomics.load(received, index) & mask) !== 0) return false;
    }
    return true;
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
