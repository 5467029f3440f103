import { assert } from "../base/assert.ts";
import type { CounterRow } from "./control.ts";
import type { DeltaCache } from "./delta-cache.ts";
import { delta } from "./encodings/delta.ts";
import type { PageEncoding } from "./encodings/encoding.ts";
import { raw } from "./encodings/raw.ts";
import { zero } from "./encodings/zero.ts";
import { isRecent } from "./generation.ts";
import { PAGE_FLAG } from "./kernels/kernels.ts";
import type { Piece } from "./piece.ts";
import { PAGES_AT, UNIT_BYTES, type Workbench } from "./workbench.ts";

/** A run as the table of a PAGES frame has it. */
export interface DescribedRun {
  readonly firstPage: number;
  readonly pages: number;
  readonly encoding: PageEncoding;
  readonly bytes: number;
}

export interface Description {
  readonly runs: readonly DescribedRun[];
  /** The payload lies at the start of the piece. */
  readonly payloadBytes: number;
  /** Pages that go as they are; not counted yet, for the payload may still be compressed. */
  readonly rawPages: number;
  readonly zeroPages: number;
  /** Pages of which a version was known, and those of them that changed too much for a delta. */
  readonly hits: number;
  readonly overflows: number;
}

/** How versions of pages are remembered while a piece is described. */
export interface Versions {
  readonly cache: DeltaCache;
  /** What is added to a page's number to tell it from other blocks' pages. */
  readonly firstKey: number;
  readonly round: number;
  /** Of the frame in which the piece will travel. */
  readonly generation: number;
  /**
   * In post-copy the destination has given up what was dirty, and waits for it: a page that is as it was
   * sent has to be told as well, by a delta that changes nothing.
   */
  readonly tellsUnchanged: boolean;
}

/** Without a cache. */
const NOTHING = { hits: 0, overflows: 0 };

/**
 * Finds the cheapest description of every page of a piece: unchanged and zero pages take no
 * payload, then come deltas, then pages as they are. Replaces the pages by the payload: raw pages
 * first, deltas behind.
 */
export class Describer {
  readonly #bench: Workbench;
  readonly #counters: CounterRow;
  readonly #generations: Uint32Array;

  constructor(bench: Workbench, counters: CounterRow) {
    this.#bench = bench;
    this.#counters = counters;
    this.#generations = new Uint32Array(bench.flags.length);
  }

  describe(piece: Piece, pageBytes: number, versions: Versions | null): Description {
    const { pages } = piece;
    if (versions === null) {
      const zeros = this.#bench.scanZero(pages, pageBytes);
      const isOfOneKind = zeros === 0 || zeros === pages;
      if (isOfOneKind && piece.isOneRun) return this.#describeRun(piece, pageBytes, zeros > 0);
    }
    const found = versions === null ? NOTHING : this.#compare(piece, pageBytes, versions);
    const runs: DescribedRun[] = [];
    this.#addRuns(runs, piece, [PAGE_FLAG.zero, PAGE_FLAG.changed], pageBytes);
    const rawPages = this.#bench.dropFlagged(pages, pageBytes);
    let payloadBytes = rawPages * pageBytes;
    if (versions !== null) {
      const told = versions.tellsUnchanged
        ? [PAGE_FLAG.delta, PAGE_FLAG.unchanged]
        : [PAGE_FLAG.delta];
      payloadBytes += this.#addDeltas(runs, piece, told, { pageBytes, at: payloadBytes });
    }
    const zeroPages = this.#count(pages);
    return { runs, payloadBytes, rawPages, zeroPages, ...found };
  }

  /** The usual case where much is the same: a piece of one run needs no look at each page. */
  #describeRun(piece: Piece, pageBytes: number, isZero: boolean): Description {
    const { pages, pageNumbers } = piece;
    const firstPage = pageNumbers[0] as number;
    const bytes = isZero ? 0 : pages * pageBytes;
    if (isZero) this.#counters.add("zero", pages);
    return {
      runs: [{ firstPage, pages, encoding: isZero ? zero : raw, bytes }],
      payloadBytes: bytes,
      rawPages: isZero ? 0 : pages,
      zeroPages: isZero ? pages : 0,
      ...NOTHING,
    };
  }

  /** Looks every page up, flags it, makes the deltas, and remembers what will be sent. */
  #compare(piece: Piece, pageBytes: number, versions: Versions): typeof NOTHING {
    const { cache, firstKey, round, generation, tellsUnchanged } = versions;
    const { bases, flags } = this.#bench;
    const { pages, pageNumbers } = piece;
    let hits = 0;
    for (let page = 0; page < pages; page += 1) {
      const found = cache.find(firstKey + (pageNumbers[page] as number), round);
      const isUsable = found !== null && isRecent(found.generation, generation);
      bases[page] = isUsable ? found.at : 0;
      this.#generations[page] = isUsable ? found.generation : 0;
      if (isUsable) hits += 1;
    }
    this.#counters.add("deltaHits", hits);
    this.#counters.add("deltaMisses", pages - hits);
    this.#bench.classify(pages, pageBytes);
    const [evictions, refusals] = [cache.evictions, cache.refusals];
    const deltaBytes = hits === 0 ? 0 : this.#bench.encodeDeltas(pages, pageBytes);
    this.#counters.add("deltaAfterBytes", deltaBytes);
    let overflows = 0;
    for (let page = 0; page < pages; page += 1) {
      if (flags[page] === PAGE_FLAG.overflow) {
        flags[page] = PAGE_FLAG.changed;
        overflows += 1;
      }
      if (flags[page] === PAGE_FLAG.unchanged && !tellsUnchanged) continue;
      const at = PAGES_AT + page * pageBytes;
      const source = this.#bench.bytes.subarray(at, at + pageBytes);
      cache.store(firstKey + (pageNumbers[page] as number), source, { generation, round });
    }
    this.#counters.add("deltaOverflows", overflows);
    this.#counters.add("deltaEvictions", cache.evictions - evictions);
    this.#counters.add("deltaRefusals", cache.refusals - refusals);
    return { hits, overflows };
  }

  /** Consecutive pages of one flag, in the order of the piece. */
  #addRuns(runs: DescribedRun[], piece: Piece, wanted: readonly number[], pageBytes: number): void {
    this.#eachRun(piece, (first, pages, flag) => {
      if (!wanted.includes(flag)) return;
      const encoding = flag === PAGE_FLAG.zero ? zero : raw;
      const bytes = flag === PAGE_FLAG.zero ? 0 : pages * pageBytes;
      runs.push({ firstPage: piece.pageNumbers[first] as number, pages, encoding, bytes });
    });
  }

  /** Appends the payload of every run that is `told` so at `at` of the piece. Returns its bytes. */
  #addDeltas(
    runs: DescribedRun[],
    piece: Piece,
    told: readonly number[],
    { pageBytes, at }: { pageBytes: number; at: number },
  ): number {
    const { bytes, view, lengths, deltas } = this.#bench;
    const unitsPerPage = pageBytes / UNIT_BYTES;
    let target = PAGES_AT + at;
    let unit = 0;
    let source = 0;
    this.#eachRun(piece, (first, pages, flag) => {
      if (!told.includes(flag)) return;
      const start = target;
      for (let page = first; page < first + pages; page += 1, target += 4) {
        view.setUint32(target, this.#generations[page] as number, true);
      }
      let deltaBytes = 0;
      for (let left = pages * unitsPerPage; left > 0; left -= 1, target += 2) {
        // There are lengths of deltas only.
        const length = flag === PAGE_FLAG.delta ? (lengths[unit++] as number) : 0;
        view.setUint16(target, length, true);
        deltaBytes += length;
      }
      bytes.set(deltas.subarray(source, source + deltaBytes), target);
      target += deltaBytes;
      source += deltaBytes;
      const firstPage = piece.pageNumbers[first] as number;
      runs.push({ firstPage, pages, encoding: delta, bytes: target - start });
      if (flag === PAGE_FLAG.delta) this.#counters.add("deltaBeforeBytes", pages * pageBytes);
    });
    return target - PAGES_AT - at;
  }

  #eachRun(piece: Piece, visit: (first: number, pages: number, flag: number) => void): void {
    const { flags } = this.#bench;
    const { pages, pageNumbers } = piece;
    for (let first = 0; first < pages; ) {
      let next = first + 1;
      while (
        next < pages &&
        flags[next] === flags[first] &&
        pageNumbers[next] === (pageNumbers[next - 1] as number) + 1
      ) {
        next += 1;
      }
      visit(first, next - first, flags[first] as number);
      first = next;
    }
  }

  /** Counts each page. Returns how many are zero. */
  #count(pages: number): number {
    const counts = [0, 0, 0, 0, 0];
    for (let page = 0; page < pages; page += 1) {
      const flag = this.#bench.flags[page] as number;
      counts[flag] = (counts[flag] ?? 0) + 1;
    }
    assert((counts[PAGE_FLAG.overflow] ?? 0) === 0, "pages that overflowed go raw");
    const zeros = counts[PAGE_FLAG.zero] ?? 0;
    this.#counters.add("zero", zeros);
    this.#counters.add("unchanged", counts[PAGE_FLAG.unchanged] ?? 0);
    this.#counters.add("delta", counts[PAGE_FLAG.delta] ?? 0);
    return zeros;
  }
}
