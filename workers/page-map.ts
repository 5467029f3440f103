import { closeSync, openSync, readSync } from "node:fs";
import { endianness } from "node:os";
import { bitsBetween } from "./dirty-words.ts";
import type { MappedRegion } from "./protocol.ts";
import { PAGES_AT, type Workbench } from "./workbench.ts";

/** What an entry of `/proc/PID/pagemap` stands for; whoever asks has checked it. */
export const BASE_PAGE_BYTES = 4096;
const ENTRY_BYTES = 8;

/** Entries that are read at once: 64 KiB of them, for 32 MiB of memory. */
const STRETCH_PAGES = 8192;
const STRETCH_BYTES = STRETCH_PAGES * ENTRY_BYTES;

/** The half of an entry with the flags, and in it: present, or swapped (or about to move). */
const FLAGS_WORD = endianness() === "LE" ? 1 : 0;
const USED_BITS = (1 << 31) | (1 << 30);

/** Words of a table of mapped pages, and what pages they are of. */
export interface MappedSpan {
  readonly mapped: Int32Array;
  readonly firstWord: number;
  readonly words: number;
  readonly pageBytes: number;
  readonly pageCount: number;
}

/** What was found in page maps. */
export interface Mapped {
  /** Pages of 4 KiB that are mapped, once or several times; -1 where that cannot be told. */
  readonly pages: number;
  /** What had to be read to know it. */
  readonly readBytes: number;
}

/**
 * Marks the pages of a span that some region has in its process's page table, and no others. Where
 * a page map cannot be read, it marks all. Entries are read into the piece of `bench`.
 */
export function markMapped(
  span: MappedSpan,
  regions: readonly MappedRegion[],
  bench: Workbench,
): Mapped {
  const maps = new Map<number, number>();
  try {
    for (const { pid } of regions) {
      if (!maps.has(pid)) maps.set(pid, openSync(`/proc/${pid}/pagemap`, "r"));
    }
    return new Look(span, regions, { maps, bench }).mark();
  } catch {
    // No such process any more, or not for us to look into: all the same to who asks.
    return markAll(span);
  } finally {
    for (const fd of maps.values()) closeSync(fd);
  }
}

/** Marks every page of a span: nothing is known of them. */
export function markAll({ mapped, firstWord, words, pageCount }: MappedSpan): Mapped {
  for (let word = firstWord; word < firstWord + words; word += 1) {
    mapped[word] = bitsBetween(0, pageCount - word * 32);
  }
  return { pages: -1, readBytes: 0 };
}

class Look {
  readonly #span: MappedSpan;
  readonly #regions: readonly MappedRegion[];
  readonly #maps: ReadonlyMap<number, number>;
  readonly #bench: Workbench;
  readonly #entries: Int32Array;
  readonly #isUsed = new Uint8Array(STRETCH_PAGES);
  #readBytes = 0;

  constructor(
    span: MappedSpan,
    regions: readonly MappedRegion[],
    { maps, bench }: { maps: ReadonlyMap<number, number>; bench: Workbench },
  ) {
    this.#span = span;
    this.#regions = regions;
    this.#maps = maps;
    this.#bench = bench;
    this.#entries = new Int32Array(bench.bytes.buffer, PAGES_AT, STRETCH_PAGES * 2);
  }

  mark(): Mapped {
    const { mapped, firstWord, words, pageBytes, pageCount } = this.#span;
    const ratio = pageBytes / BASE_PAGE_BYTES;
    mapped.fill(0, firstWord, firstWord + words);
    const end = Math.min(pageCount, (firstWord + words) * 32) * ratio;
    let used = 0;
    for (let first = firstWord * 32 * ratio; first < end; first += STRETCH_PAGES) {
      const pages = Math.min(STRETCH_PAGES, end - first);
      if (!this.#read(first, pages)) continue;
      for (let index = 0; index < pages; index += 1) {
        if (this.#isUsed[index] === 0) continue;
        used += 1;
        const page = Math.floor((first + index) / ratio);
        mapped[page >>> 5] = (mapped[page >>> 5] as number) | (1 << (page & 31));
      }
    }
    return { pages: used, readBytes: this.#readBytes };
  }

  /** Notes which pages of a stretch are used in any region; false where none is. */
  #read(first: number, pages: number): boolean {
    let isAnyUsed = false;
    for (const { pid, address, firstPage, pages: regionPages } of this.#regions) {
      const from = Math.max(first, firstPage);
      const end = Math.min(first + pages, firstPage + regionPages);
      if (from >= end) continue;
      const at = address / BASE_PAGE_BYTES + (from - firstPage);
      this.#readEntries(this.#maps.get(pid) as number, at, end - from);
      // Long stretches that nobody uses are what makes this worth while: they are looked at by SIMD.
      if (end - from === STRETCH_PAGES && this.#bench.scanZero(1, STRETCH_BYTES) === 1) continue;
      if (!isAnyUsed) this.#isUsed.fill(0, 0, pages);
      isAnyUsed = true;
      for (let index = 0; index < end - from; index += 1) {
        if (((this.#entries[2 * index + FLAGS_WORD] as number) & USED_BITS) === 0) continue;
        this.#isUsed[from - first + index] = 1;
      }
    }
    return isAnyUsed;
  }

  #readEntries(fd: number, entry: number, count: number): void {
    const bytes = count * ENTRY_BYTES;
    const read = readSync(fd, this.#entries, 0, bytes, entry * ENTRY_BYTES);
    this.#readBytes += read;
    if (read !== bytes) throw new RangeError("the address space ends before the region");
  }
}
