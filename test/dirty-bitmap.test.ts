import { expect, test } from "vitest";
import { InvariantError, must } from "../base/assert.ts";
import { GIB, KIB, MIB, TIB } from "../base/units.ts";
import { DirtyBitmap } from "../engine/dirty-bitmap.ts";
import { type DirtyLog, markDirty } from "../engine/dirty-log.ts";
import {
  bitsBetween,
  createDirtyWords,
  orBits,
  takeWords,
  undoWords,
} from "../workers/dirty-words.ts";
import { chunkWords } from "./fixtures/dirty-ledger.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

interface Shape {
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesPerChunk: number;
  readonly logPageBytes: readonly number[];
}

/** Odd ends everywhere, and every relation between the pages of a log and those of the wire. */
const SHAPES: Readonly<Record<string, Shape>> = {
  "two logs of wire pages": {
    pageBytes: 4 * KIB,
    pageCount: 5003,
    pagesPerChunk: 96,
    logPageBytes: [4 * KIB, 4 * KIB],
  },
  "a log of huge pages beside one of wire pages": {
    pageBytes: 4 * KIB,
    pageCount: 512 * 7,
    pagesPerChunk: 512,
    logPageBytes: [2 * MIB, 4 * KIB],
  },
  "logs whose last page overhangs the block": {
    pageBytes: 4 * KIB,
    pageCount: 1001,
    pagesPerChunk: 32,
    logPageBytes: [64 * KIB, 2 * MIB, 8 * KIB],
  },
  "logs of pages within wire pages": {
    pageBytes: 16 * KIB,
    pageCount: 777,
    pagesPerChunk: 128,
    logPageBytes: [4 * KIB, 8 * KIB, 16 * KIB],
  },
  "a log of which two words make one wire page": {
    pageBytes: 256 * KIB,
    pageCount: 101,
    pagesPerChunk: 32,
    logPageBytes: [4 * KIB],
  },
  "a block of one page": {
    pageBytes: 64 * KIB,
    pageCount: 1,
    pagesPerChunk: 32,
    logPageBytes: [4 * KIB, 64 * KIB, GIB],
  },
};

const OPERATIONS = 600;

for (const [name, shape] of Object.entries(SHAPES)) {
  test(`random operations agree with sets of pages: ${name} (SEED=${seed})`, () => {
    const random = new Prng(seed);
    const pair = new Pair(shape);
    for (let i = 0; i < OPERATIONS; i += 1) {
      pair.act(random);
      if (i % 20 === 0) pair.compare();
    }
    pair.compare();
  });
}

/** A bitmap and its logs beside the shortest thing that is obviously right: sets of pages. */
class Pair {
  readonly #shape: Shape;
  readonly #bitmap: DirtyBitmap;
  readonly #logs: readonly DirtyLog[];
  readonly #dirty = new Set<number>();
  /** The wire pages that each log stands for. */
  readonly #marked: readonly Set<number>[];
  /** What was taken and may be put back. */
  readonly #held: { first: number; taken: Int32Array }[] = [];

  constructor(shape: Shape) {
    this.#shape = shape;
    this.#bitmap = new DirtyBitmap(shape);
    this.#logs = shape.logPageBytes.map((logPageBytes) => logOf(shape, logPageBytes));
    this.#marked = this.#logs.map(() => new Set());
  }

  act(random: Prng): void {
    const kind = random.below(20);
    if (kind < 9) this.#mark(random);
    else if (kind < 13) this.#sync(random);
    else if (kind < 17) this.#take(random.below(this.#bitmap.chunkCount));
    else if (kind < 19) this.#undo();
    else if (random.below(10) === 0) this.#fill();
  }

  compare(): void {
    const { pageCount, pagesPerChunk } = this.#shape;
    const pages = Array.from({ length: pageCount }, (_, page) => page);
    expect(pages.filter((page) => isDirty(this.#bitmap, page))).toEqual(sorted(this.#dirty));
    expect(this.#bitmap.dirtyCount()).toBe(this.#dirty.size);
    const chunks = sorted(
      new Set([...this.#dirty].map((page) => Math.floor(page / pagesPerChunk))),
    );
    expect(walk(this.#bitmap)).toEqual(chunks);
    const every = Array.from({ length: this.#bitmap.chunkCount }, (_, chunk) => chunk);
    expect(every.filter((chunk) => this.#bitmap.isChunkDirty(chunk))).toEqual(chunks);
    expect(every).toHaveLength(Math.ceil(pageCount / pagesPerChunk));
    const counts = every.map(() => 0);
    for (const page of this.#dirty) {
      const chunk = Math.floor(page / pagesPerChunk);
      counts[chunk] = must(counts[chunk], "a dirty page lies in a chunk") + 1;
    }
    expect(every.map((chunk) => this.#bitmap.dirtyCountOf(chunk))).toEqual(counts);
  }

  /** Some pages near each other, often the first or the last ones. */
  #mark(random: Prng): void {
    const which = random.below(this.#logs.length);
    const log = must(this.#logs[which], "a log");
    const start = must([0, log.pageCount - 1, random.below(log.pageCount)][random.below(3)], "one");
    const count = Math.min(1 + random.below(40), log.pageCount - start);
    for (let page = start; page < start + count; page += 1) {
      markDirty(log, page);
      const first = Math.floor((page * log.pageBytes) / this.#shape.pageBytes);
      const end = Math.ceil(((page + 1) * log.pageBytes) / this.#shape.pageBytes);
      for (let wirePage = first; wirePage < Math.min(end, this.#shape.pageCount); wirePage += 1) {
        must(this.#marked[which], "a set per log").add(wirePage);
      }
    }
  }

  #sync(random: Prng): void {
    const chosen = this.#logs.map((_, which) => which).filter(() => random.below(3) > 0);
    const before = this.#dirty.size;
    for (const which of chosen) {
      const marked = must(this.#marked[which], "a set per log");
      for (const page of marked) this.#dirty.add(page);
      marked.clear();
    }
    const logs = chosen.map((which) => must(this.#logs[which], "a log"));
    expect(this.#bitmap.sync(logs)).toBe(this.#dirty.size - before);
    for (const { words, summary } of logs) {
      expect([...words, ...summary].every((word) => word === 0)).toBe(true);
    }
  }

  #take(chunk: number): void {
    const { first, count } = chunkWords(this.#bitmap, chunk);
    const taken = new Int32Array(count).fill(-1); // What was there before must not stay.
    const pages = takeWords(this.#bitmap.words, first, taken);
    expect(pagesOf(first, taken).filter((page) => !this.#dirty.delete(page))).toEqual([]);
    expect(pagesOf(first, taken)).toHaveLength(pages);
    expect(this.#bitmap.isChunkDirty(chunk)).toBe(false);
    this.#held.push({ first, taken });
  }

  #undo(): void {
    const held = this.#held.shift();
    if (held === undefined) return;
    const before = this.#dirty.size;
    for (const page of pagesOf(held.first, held.taken)) this.#dirty.add(page);
    const pages = undoWords(this.#bitmap.words, held.first, held.taken);
    expect(pages).toBe(this.#dirty.size - before);
  }

  #fill(): void {
    this.#bitmap.fill();
    for (let page = 0; page < this.#shape.pageCount; page += 1) this.#dirty.add(page);
  }
}

test("a filled bitmap has every page dirty and no bit past its end", () => {
  for (const pageCount of [1, 31, 32, 33, 1023, 1024, 1025, 5003]) {
    const bitmap = new DirtyBitmap({ pageCount, pageBytes: 4 * KIB, pagesPerChunk: 64 });
    bitmap.fill();
    expect(bitmap.dirtyCount()).toBe(pageCount);
    expect(pagesOf(0, bitmap.words.words)).toHaveLength(pageCount);
    expect(pagesOf(0, bitmap.words.summary)).toHaveLength(bitmap.words.words.length);
    expect(walk(bitmap)).toHaveLength(bitmap.chunkCount);
  }
});

test("a filled chunk has every page dirty, and nothing around it", () => {
  for (const pageCount of [63, 64, 65, 128, 130, 191, 1025]) {
    const size = { pageCount, pageBytes: 4 * KIB, pagesPerChunk: 64 };
    const { chunkCount } = new DirtyBitmap(size);
    for (let chunk = 0; chunk < chunkCount; chunk += 1) {
      const bitmap = new DirtyBitmap(size);
      bitmap.fillChunk(chunk);
      expect(walk(bitmap)).toEqual([chunk]);
      expect(bitmap.dirtyCount()).toBe(Math.min(64, pageCount - chunk * 64));
      expect(bitmap.dirtyCountOf(chunk)).toBe(bitmap.dirtyCount());
    }
  }
});

test("a page in several logs is counted once, and again once it was taken", () => {
  const shape = must(SHAPES["two logs of wire pages"], "a shape");
  const bitmap = new DirtyBitmap(shape);
  const logs = [logOf(shape, 4 * KIB), logOf(shape, 4 * KIB)];
  const markBoth = (): void => logs.forEach((log) => void markDirty(log, 5002));
  markBoth();
  expect(bitmap.sync(logs)).toBe(1);
  markBoth();
  expect(bitmap.sync(logs)).toBe(0);
  takeWords(bitmap.words, 5002 >>> 5, new Int32Array(1));
  markBoth();
  expect(bitmap.sync(logs)).toBe(1);
});

test("undo counts only pages that were not written again meanwhile", () => {
  const bitmap = new DirtyBitmap({ pageCount: 64, pageBytes: 4 * KIB, pagesPerChunk: 64 });
  const taken = new Int32Array(2);
  orBits(bitmap.words, 0, 0b0111);
  expect(takeWords(bitmap.words, 0, taken)).toBe(3);
  orBits(bitmap.words, 0, 0b1100);
  expect(undoWords(bitmap.words, 0, taken)).toBe(2);
  expect(bitmap.words.words[0]).toBe(0b1111);
});

test("a take leaves the words around its range alone", () => {
  const bitmap = new DirtyBitmap({ pageCount: 32 * 70, pageBytes: 4 * KIB, pagesPerChunk: 32 });
  for (let first = 0; first < 70; first += 1) {
    for (const count of [1, 2, 31, 32, 33, 65]) {
      if (first + count > 70) continue;
      bitmap.fill();
      const taken = new Int32Array(count);
      expect(takeWords(bitmap.words, first, taken)).toBe(32 * count);
      expect(bitmap.dirtyCount()).toBe(32 * (70 - count));
      expect(walk(bitmap)).toHaveLength(70 - count);
    }
  }
});

test("a mark over an empty word is no dirty chunk", () => {
  const bitmap = new DirtyBitmap({ pageCount: 5003, pageBytes: 4 * KIB, pagesPerChunk: 64 });
  bitmap.words.summary.fill(-1);
  orBits(bitmap.words, 100, 1);
  expect(walk(bitmap)).toEqual([50]);
  expect(bitmap.dirtyCount()).toBe(1);
  expect(bitmap.isChunkDirty(49)).toBe(false);
});

test("a host may mark all words in the summary, also those past its end", () => {
  const shape = must(SHAPES["two logs of wire pages"], "a shape");
  const bitmap = new DirtyBitmap(shape);
  const log = logOf(shape, 4 * KIB);
  markDirty(log, 77);
  log.summary.fill(-1);
  expect(bitmap.sync([log])).toBe(1);
  expect(log.summary.every((marks) => marks === 0)).toBe(true);
  expect(pagesOf(0, bitmap.words.summary)).toEqual([77 >>> 5]);
});

for (const logPageBytes of [4 * KIB, 16 * KIB, 64 * KIB]) {
  test(`a bit past the block's end asserts after the others moved: ${logPageBytes}`, () => {
    const shape = { pageBytes: 16 * KIB, pageCount: 1001 * 4 };
    const exact = logOf(shape, logPageBytes);
    // Some hosts round their bitmaps up; bits in the words beyond are as wrong as in the last one.
    const roomy = { ...exact, ...createDirtyWords(exact.pageCount + 1000) };
    for (const [log, strayPage] of [
      [exact, exact.pageCount],
      [roomy, exact.pageCount],
      [roomy, exact.pageCount + 999],
    ] as const) {
      const bitmap = new DirtyBitmap({ ...shape, pagesPerChunk: 64 });
      orBits(log, strayPage >>> 5, 1 << (strayPage & 31));
      markDirty(log, 0);
      markDirty(log, log.pageCount - 1);
      expect(() => bitmap.sync([log])).toThrow(InvariantError);
      const pagesPerMark = Math.max(1, logPageBytes / shape.pageBytes);
      expect(bitmap.dirtyCount()).toBe(2 * pagesPerMark);
      expect(pagesOf(0, bitmap.words.words).at(-1)).toBe(shape.pageCount - 1);
      expect(bitmap.sync([log])).toBe(0);
    }
  });
}

test("what cannot be a bitmap, a log of its block or a chunk of it asserts", () => {
  const size = { pageCount: 100, pageBytes: 4 * KIB, pagesPerChunk: 64 };
  for (const wrong of [
    { pageCount: 0 },
    { pageCount: 1.5 },
    { pageBytes: 3 * KIB },
    { pagesPerChunk: 0 },
    { pagesPerChunk: 48 },
    { pagesPerChunk: -32 },
  ]) {
    expect(() => new DirtyBitmap({ ...size, ...wrong })).toThrow(InvariantError);
  }
  const bitmap = new DirtyBitmap(size);
  const log = logOf(size, 4 * KIB);
  for (const wrong of [
    { pageCount: 99 },
    { pageCount: 101 },
    { pageBytes: 8 * KIB },
    { pageBytes: 3 * KIB },
    { words: log.words.subarray(1) },
    { summary: log.summary.subarray(1) },
  ]) {
    expect(() => bitmap.sync([{ ...log, ...wrong }])).toThrow(InvariantError);
  }
  expect(() => bitmap.isChunkDirty(2)).toThrow(InvariantError);
  expect(() => bitmap.dirtyCountOf(2)).toThrow(InvariantError);
  expect(() => bitmap.nextDirtyChunk(-1)).toThrow(InvariantError);
  expect(() => bitmap.nextDirtyChunk(3)).toThrow(InvariantError);
  expect(bitmap.nextDirtyChunk(2)).toBe(-1);
  expect(() => takeWords(bitmap.words, 3, new Int32Array(2))).toThrow(InvariantError);
  expect(() => undoWords(bitmap.words, -1, new Int32Array(2))).toThrow(InvariantError);
});

test("bits between two places are those a loop sets", () => {
  for (let from = -40; from <= 40; from += 1) {
    for (let to = -40; to <= 40; to += 1) {
      let expected = 0;
      for (let bit = 0; bit < 32; bit += 1) if (bit >= from && bit < to) expected |= 1 << bit;
      if (bitsBetween(from, to) !== expected) expect.fail(`${from}..${to}`);
    }
  }
});

const TERABYTE = { pageCount: TIB / (4 * KIB), pageBytes: 4 * KIB, pagesPerChunk: 512 };

/** The fraction whose multiples, modulo 1, spread most evenly: pages that are far apart. */
const GOLDEN = (Math.sqrt(5) - 1) / 2;

test("a sync, a count and a walk of a terabyte read its summary and what is dirty, once", () => {
  const bitmap = new DirtyBitmap(TERABYTE);
  const log = logOf(TERABYTE, 4 * KIB);
  const summaryWords = TERABYTE.pageCount / 1024;
  const dirty = new Set<number>();
  for (const wanted of [0, 1, 100, 1000, 10_000]) {
    const before = dirty.size;
    for (let i = before; i < wanted; i += 1) {
      const page = Math.floor(((i * GOLDEN) % 1) * TERABYTE.pageCount);
      markDirty(log, page);
      dirty.add(page);
    }
    const synced = visitedBy(bitmap, () => bitmap.sync([log]));
    expect(synced).toEqual({ result: wanted - before, visits: summaryWords + wanted - before });
    const counted = visitedBy(bitmap, () => bitmap.dirtyCount());
    expect(counted).toEqual({ result: wanted, visits: summaryWords + wanted });
    // A walk goes on in the middle of a group, whose summary word it reads again then.
    const walked = visitedBy(bitmap, () => walk(bitmap));
    expect(walked.result).toEqual(sorted(new Set([...dirty].map((page) => page >>> 9))));
    expect(walked.visits).toBeLessThanOrEqual(summaryWords + 2 * wanted);
  }
});

test("whether a chunk is dirty costs as much as the chunk has words", () => {
  const bitmap = new DirtyBitmap({ ...TERABYTE, pageCount: 2 ** 20 });
  bitmap.words.summary.fill(-1);
  expect(visitedBy(bitmap, () => bitmap.isChunkDirty(1)).visits).toBe(1 + 512 / 32);
});

function visitedBy<T>(bitmap: DirtyBitmap, run: () => T): { result: T; visits: number } {
  const before = bitmap.visitedWords;
  const result = run();
  return { result, visits: bitmap.visitedWords - before };
}

function logOf(block: { pageBytes: number; pageCount: number }, logPageBytes: number): DirtyLog {
  const pageCount = Math.ceil((block.pageCount * block.pageBytes) / logPageBytes);
  return { block: "ram", pageBytes: logPageBytes, pageCount, ...createDirtyWords(pageCount) };
}

function isDirty(bitmap: DirtyBitmap, page: number): boolean {
  return ((bitmap.words.words[page >>> 5] as number) & (1 << (page & 31))) !== 0;
}

/** The places of the bits set in words that begin with word `first`. */
function pagesOf(first: number, words: Int32Array): number[] {
  const pages: number[] = [];
  words.forEach((bits, i) => {
    for (let bit = 0; bit < 32; bit += 1) {
      if ((bits & (1 << bit)) !== 0) pages.push((first + i) * 32 + bit);
    }
  });
  return pages;
}

function walk(bitmap: DirtyBitmap): number[] {
  const chunks: number[] = [];
  for (let chunk = bitmap.nextDirtyChunk(0); chunk !== -1; ) {
    chunks.push(chunk);
    chunk = bitmap.nextDirtyChunk(chunk + 1);
  }
  return chunks;
}

function sorted(pages: Iterable<number>): number[] {
  return [...pages].sort((a, b) => a - b);
}
