import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import {
  DELTA_ROOM_BYTES,
  DELTA_UNIT_BYTES,
  type Kernels,
  loadKernels,
  PAGE_FLAG,
} from "../workers/kernels/kernels.ts";
import { loadReference } from "../workers/kernels/reference.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const UNIT = DELTA_UNIT_BYTES;
const PAGE_SIZES = [4 * KIB, 16 * KIB, 64 * KIB] as const;
const RUNS = 300;
const DECODER_RUNS = 20_000;
const seed = seedFromEnvironment();

type Load = (memory: WebAssembly.Memory) => Kernels;

// Random and adversarial pages, kernels against their reference.

test(`the kernels agree with their reference on random pages (SEED=${seed})`, () => {
  expect(() => comparePages(loadKernels, new Prng(seed), RUNS)).not.toThrow();
});

test(`the kernels agree with their reference on hostile deltas (SEED=${seed})`, () => {
  expect(() => compareDecoders(loadKernels, new Prng(seed), DECODER_RUNS)).not.toThrow();
});

for (const [fault, load] of Object.entries(brokenEncoders())) {
  test(`the comparison catches an encoder that ${fault} (SEED=${seed})`, () => {
    expect(() => comparePages(load, new Prng(seed), RUNS)).toThrow("differ");
  });
}

for (const [fault, load] of Object.entries(brokenDecoders())) {
  test(`the comparison catches a decoder that ${fault} (SEED=${seed})`, () => {
    expect(() => compareDecoders(load, new Prng(seed), DECODER_RUNS)).toThrow("differ");
  });
}

// One unit at a time: `encode` and `decode` of the kernels and of the reference in turn.

test(`any number of changed bytes survives encoding and decoding (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const [kernels, reference] = [new Bench(loadKernels), new Bench(loadReference)];
  for (let count = 0; count <= UNIT; count += 1) {
    const base = randomBytes(random, UNIT);
    const unit = base.slice();
    for (let change = 0; change < count; change += 1) flip(unit, random.below(UNIT), random);
    expectRoundTrip(kernels, reference, { unit, base });
  }
});

test(`10000 random ranges survive encoding and decoding (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const bench = new Bench(loadKernels);
  const base = randomBytes(random, UNIT);
  const lost: string[] = [];
  for (let run = 0; run < 10_000; run += 1) {
    const unit = base.slice();
    const first = random.below(UNIT);
    const end = first + 1 + random.below(UNIT - first);
    for (let at = first; at < end; at += 1) flip(unit, at, random);
    const delta = bench.encode(unit, base);
    const bytes = numberOf(first).length + numberOf(end - first).length + end - first;
    if (bytes + 2 >= UNIT) {
      if (delta !== null) lost.push(`${first} to ${end} does not overflow`);
      continue;
    }
    const decoded = delta === null ? null : bench.decode(delta, base);
    const isRight = decoded?.position === end && isSame(decoded.unit, unit);
    if (delta?.length !== bytes || !isRight) lost.push(`${first} to ${end}`);
  }
  expect(lost).toEqual([]);
});

test(`runs of every length up to 300 are found at every alignment (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const bench = new Bench(loadKernels);
  const base = randomBytes(random, UNIT);
  const lost: string[] = [];
  for (let length = 1; length <= 300; length += 1) {
    const inside = Array.from({ length: 64 }, (_, at) => 64 * (1 + random.below(58)) + at);
    for (const first of [0, 1, random.below(64), ...inside, UNIT - length - 1, UNIT - length]) {
      const unit = base.slice();
      for (let at = first; at < first + length; at += 1) flip(unit, at, random);
      const delta = must(bench.encode(unit, base), "a short run fits");
      const wanted = [
        ...numberOf(first),
        ...numberOf(length),
        ...unit.slice(first, first + length),
      ];
      const decoded = bench.decode(delta, base);
      const isRight = decoded?.position === first + length && isSame(decoded.unit, unit);
      if (!isSame(delta, Uint8Array.from(wanted)) || !isRight) lost.push(`${length} at ${first}`);
    }
  }
  expect(lost).toEqual([]);
});

test("runs are merged over one or two unchanged bytes and not over three, at any position", () => {
  const bench = new Bench(loadKernels);
  const base = new Uint8Array(UNIT);
  const lost: string[] = [];
  for (let gap = 1; gap <= 4; gap += 1) {
    for (let first = 0; first + gap + 1 < UNIT; first += 1) {
      const unit = base.slice();
      unit[first] = 7;
      unit[first + gap + 1] = 9;
      const merged = [...numberOf(first), gap + 2, 7, ...new Array(gap).fill(0), 9];
      const apart = [...numberOf(first), 1, 7, gap, 1, 9];
      const wanted = gap <= 2 ? merged : apart;
      const delta = must(bench.encode(unit, base), "two changes fit");
      if (!isSame(delta, Uint8Array.from(wanted))) lost.push(`${gap} at ${first}`);
    }
  }
  expect(lost).toEqual([]);
});

test("QEMU's vectors hold", () => {
  const bench = new Bench(loadKernels);
  const zeros = new Uint8Array(UNIT);
  const sevens = new Uint8Array(UNIT).fill(7);
  expect(bench.encode(zeros, zeros)).toEqual(new Uint8Array(0));
  expect(bench.encode(sevens, sevens)).toEqual(new Uint8Array(0));

  const lastByte = zeros.slice();
  lastByte[UNIT - 1] = 5;
  expect(bench.encode(lastByte, zeros)).toEqual(Uint8Array.of(0xff, 0x1f, 1, 5));
  const firstByte = zeros.slice();
  firstByte[0] = 5;
  expect(bench.encode(firstByte, zeros)).toEqual(Uint8Array.of(0, 1, 5));

  // The overflow holds with merged runs too: a single run, of 4095 bytes and 3 bytes of numbers.
  expect(
    bench.encode(
      zeros.map((_, at) => at % 2),
      zeros,
    ),
  ).toBe(null);
  expect(bench.encode(sevens, zeros)).toBe(null);
});

test("a number of QEMU's is read back, whatever its value, and never has a third byte", () => {
  const bench = new Bench(loadKernels);
  const zeros = new Uint8Array(UNIT);
  const misread: number[] = [];
  for (let number = 0; number <= 0x3fff; number += 1) {
    const decoded = bench.decode(Uint8Array.of(...numberOf(number), 1, 9), zeros);
    if (decoded?.position !== (number < UNIT ? number + 1 : undefined)) misread.push(number);
  }
  expect(misread).toEqual([]);
  for (let count = 1; count <= 0x3fff; count += 97) {
    const source = new Uint8Array([0, ...numberOf(count), ...new Array(count).fill(9)]);
    expect(bench.decode(source, zeros)?.position).toBe(count <= UNIT ? count : undefined);
  }
  expect(bench.decode(Uint8Array.of(0x80, 0x80, 1, 9), zeros)).toBe(null);
  expect(bench.decode(Uint8Array.of(0, 0x80, 0x80, 9), zeros)).toBe(null);
});

test("the largest encoding that a unit may have is a delta, and one byte more overflows", () => {
  // 4 KiB pages must save more than their length in the table, larger ones only over all units.
  for (const [pageBytes, bytesMax] of [
    [UNIT, UNIT - 3],
    [4 * UNIT, UNIT - 1],
  ] as const) {
    for (const isTooLong of [false, true]) {
      const bench = new Bench(loadKernels);
      const base = new Uint8Array(pageBytes);
      const page = base.slice().fill(1, 0, bytesMax - 3 + Number(isTooLong));
      bench.encode(page, base);
      expect(bench.flag).toBe(isTooLong ? PAGE_FLAG.overflow : PAGE_FLAG.delta);
    }
  }
});

test("a larger page may have a unit of which only two bytes at either end are unchanged", () => {
  const bench = new Bench(loadKernels);
  const base = new Uint8Array(4 * UNIT);
  const page = base.slice().fill(1, 2, UNIT - 2);
  expect(bench.encode(page, base)?.length).toBe(UNIT - 1);
  expect(bench.encode(page.fill(1, UNIT - 2, UNIT - 1), base)).toBe(null);
});

test("unchanged wins over zero, and a zero page without a base is zero", () => {
  const bench = new Bench(loadKernels);
  const zeros = new Uint8Array(UNIT);
  expect(bench.classify(zeros, zeros)).toEqual({ count: 0, flag: PAGE_FLAG.unchanged });
  expect(bench.classify(zeros, zeros.slice().fill(1, UNIT - 1))).toEqual({
    count: 0,
    flag: PAGE_FLAG.zero,
  });
  expect(bench.classify(zeros.slice().fill(1), null)).toEqual({
    count: 1,
    flag: PAGE_FLAG.changed,
  });
});

test("offset 0 is no base, though there are bytes too", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { classify, encodeDelta } = loadKernels(memory);
  const [pageAt, tableAt, flagsAt, outAt] = [8 * KIB, 16 * KIB, 17 * KIB, 32 * KIB];
  expect(classify(pageAt, UNIT, 1, tableAt, flagsAt)).toBe(0);
  const bytes = new Uint8Array(memory.buffer);
  expect(bytes[flagsAt]).toBe(PAGE_FLAG.zero);
  bytes[flagsAt] = PAGE_FLAG.changed;
  expect(encodeDelta(pageAt, UNIT, 1, tableAt, flagsAt, outAt, 16 * KIB, 64)).toBe(0);
  expect(bytes[flagsAt]).toBe(PAGE_FLAG.changed);
});

for (const pageBytes of PAGE_SIZES) {
  test(`a change of one bit anywhere in ${pageBytes} bytes is seen`, () => {
    const bench = new Bench(loadKernels);
    const base = new Uint8Array(pageBytes).fill(0xa5);
    const missed: number[] = [];
    for (let at = 0; at < pageBytes; at += pageBytes === UNIT ? 1 : 5) {
      const page = base.slice();
      page[at] = 0xa5 ^ (1 << (at % 8));
      const { count } = bench.classify(page, base);
      const delta = bench.encode(page, base);
      const inUnit = at % UNIT;
      if (count !== 1 || delta?.length !== (inUnit < 0x80 ? 3 : 4)) missed.push(at);
    }
    expect(missed).toEqual([]);
  });
}

// Edges: of memory, of the output room, of nothing at all.

test(`nothing is read or written behind the last byte of the memory (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const memory = new WebAssembly.Memory({ initial: 2 });
  const kernels = loadKernels(memory);
  const bytes = new Uint8Array(memory.buffer);
  const view = new DataView(memory.buffer);
  const end = bytes.length;
  const [tableAt, flagsAt, lengthsAt, outAt] = [8, 16, 24, 4 * KIB];

  for (let run = 0; run < 2000; run += 1) {
    // Page and base change places at the end of the memory.
    const [pageAt, baseAt] = run % 2 === 0 ? [end - UNIT, 64 * KIB] : [64 * KIB, end - UNIT];
    random.bytes(bytes.subarray(baseAt, baseAt + UNIT));
    bytes.copyWithin(pageAt, baseAt, baseAt + UNIT);
    const page = bytes.slice(pageAt, pageAt + UNIT);
    for (let change = random.below(40); change >= 0; change -= 1) {
      flip(page, UNIT - 1 - random.below(50), random);
    }
    // Two changes of one byte may have undone each other.
    if (Buffer.compare(page, bytes.subarray(baseAt, baseAt + UNIT)) === 0)
      flip(page, UNIT - 1, random);
    bytes.set(page, pageAt);
    view.setUint32(tableAt, baseAt, true);
    expect(kernels.classify(pageAt, UNIT, 1, tableAt, flagsAt)).toBe(1);
    const length = kernels.encodeDelta(
      ...[pageAt, UNIT, 1, tableAt, flagsAt, outAt, UNIT + DELTA_ROOM_BYTES, lengthsAt],
    );
    const delta = bytes.slice(outAt, outAt + length);

    // The target at the end of the memory, then the source.
    bytes.set(bytes.slice(baseAt, baseAt + UNIT), end - UNIT);
    const target = bytes.slice(end - UNIT);
    expect(kernels.decodeDelta(outAt, length, end - UNIT)).toBeGreaterThan(0);
    expect(isSame(bytes.subarray(end - UNIT), page)).toBe(true);
    bytes.set(delta, end - length);
    bytes.set(target, 64 * KIB);
    expect(kernels.decodeDelta(end - length, length, 64 * KIB)).toBeGreaterThan(0);
    expect(isSame(bytes.subarray(64 * KIB, 64 * KIB + UNIT), page)).toBe(true);
  }
});

test(`lengths that do not fit their source are refused, whatever they are (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const memories = [loadKernels, loadReference].map((load) => {
    const memory = new WebAssembly.Memory({ initial: 1 });
    return { kernels: load(memory), bytes: new Uint8Array(memory.buffer) };
  });
  const [tested, trusted] = [must(memories[0], "a pair"), must(memories[1], "a pair")];
  const unitCount = 5;
  const [lengthsAt, targetAt] = [101, 32 * KIB + 1];
  const differing: string[] = [];
  let validCount = 0;

  for (let run = 0; run < 3000; run += 1) {
    const units = Array.from({ length: unitCount }, () => {
      const count = 1 + random.below(100);
      return random.below(3) === 0 ? [] : [random.below(100), count, ...new Array(count).fill(run)];
    });
    const lengths = units.map((unit) => unit.length);
    const at = random.below(unitCount);
    if (random.below(3) > 0) lengths[at] = pick(random, 0, 1, 200, 0xffff, (lengths[at] ?? 0) + 1);
    if (random.below(3) === 0) lengths.reverse();
    const source = Uint8Array.from(units.flat());
    const sourceBytes = Math.max(0, source.length - pick(random, 0, 0, 0, 1, 20));
    // At the end of the memory, so that reading on would trap.
    const sourceAt = trusted.bytes.length - sourceBytes;
    random.bytes(trusted.bytes.subarray(0, KIB));
    trusted.bytes.set(source.subarray(0, sourceBytes), sourceAt);
    trusted.bytes.set(new Uint8Array(Uint16Array.from(lengths).buffer), lengthsAt);
    tested.bytes.set(trusted.bytes);
    const [found, wanted] = [tested, trusted].map(({ kernels }) =>
      kernels.decodeDeltas(sourceAt, sourceBytes, lengthsAt, unitCount, targetAt),
    );
    if (wanted === 0) validCount += 1;
    // A target that is thrown away may hold anything.
    for (const { bytes } of wanted === 0 ? [] : [tested, trusted]) {
      bytes.fill(0, targetAt, targetAt + unitCount * UNIT);
    }
    if (found !== wanted || !isSame(tested.bytes, trusted.bytes)) differing.push(`${lengths}`);
  }
  expect(differing).toEqual([]);
  expect(validCount).toBeGreaterThan(100);
  expect(validCount).toBeLessThan(2900);
});

test("a room that runs out makes pages overflow, and nothing is written outside of it", () => {
  const pageCount = 4;
  const pages = new Uint8Array(pageCount * UNIT).fill(1);
  const bases = pages.slice();
  for (let page = 0; page < pageCount; page += 1) pages.fill(2, page * UNIT, page * UNIT + 1000);
  const deltaBytes = 3 + 1000;

  const edges = [0, 1, 2, 3].map((page) => DELTA_ROOM_BYTES + page * deltaBytes);
  for (const room of [0, 1, 4096, 9000, ...edges.flatMap((edge) => [edge - 1, edge, edge + 1])]) {
    const memory = new WebAssembly.Memory({ initial: 2 });
    const bytes = new Uint8Array(memory.buffer).fill(0xcc);
    const { encodeDelta } = loadKernels(memory);
    const [pagesAt, basesAt, tableAt, flagsAt, lengthsAt, outAt] = [
      ...[4 * KIB, 24 * KIB, 44 * KIB, 45 * KIB, 46 * KIB, 64 * KIB + 1],
    ] as const;
    bytes.set(pages, pagesAt);
    bytes.set(bases, basesAt);
    const table = Uint32Array.from({ length: pageCount }, (_, page) => basesAt + page * UNIT);
    bytes.set(new Uint8Array(table.buffer), tableAt);
    bytes.fill(0, flagsAt, flagsAt + pageCount);

    const fitting = Math.max(0, Math.floor((room - DELTA_ROOM_BYTES) / deltaBytes) + 1);
    const count = Math.min(room < DELTA_ROOM_BYTES ? 0 : fitting, pageCount);
    expect(encodeDelta(pagesAt, UNIT, pageCount, tableAt, flagsAt, outAt, room, lengthsAt)).toBe(
      count * deltaBytes,
    );
    const flags = [...bytes.subarray(flagsAt, flagsAt + pageCount)];
    expect(flags.filter((flag) => flag === PAGE_FLAG.delta).length).toBe(count);
    expect(flags.filter((flag) => flag === PAGE_FLAG.overflow).length).toBe(pageCount - count);
    expect(bytes.subarray(lengthsAt + 2 * pageCount, outAt).every((b) => b === 0xcc)).toBe(true);
    expect(bytes.subarray(outAt + room).every((byte) => byte === 0xcc)).toBe(true);
  }
});

test("the most runs that there can be leave alone what is around the room, at any place", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { encodeDelta } = loadKernels(memory);
  const bytes = new Uint8Array(memory.buffer);
  const view = new DataView(memory.buffer);
  const [pageAt, baseAt, tableAt, flagsAt, lengthsAt] = [4 * KIB, 8 * KIB, 1, 5, 6];
  for (let outAt = 16 * KIB; outAt < 16 * KIB + 64; outAt += 1) {
    bytes.fill(0xcc).fill(0, baseAt, baseAt + UNIT);
    for (let at = 0; at < UNIT; at += 1) bytes[pageAt + at] = at % 4 === 3 ? 1 : 0;
    view.setUint32(tableAt, baseAt, true);
    bytes[flagsAt] = PAGE_FLAG.changed;
    const [length, end] = [3 * 1024, outAt + DELTA_ROOM_BYTES];
    expect(encodeDelta(pageAt, UNIT, 1, tableAt, flagsAt, outAt, DELTA_ROOM_BYTES, lengthsAt)).toBe(
      length,
    );
    const runs = Array.from({ length: 1024 }, () => [3, 1, 1]).flat();
    expect(isSame(bytes.subarray(outAt, outAt + length), Uint8Array.from(runs))).toBe(true);
    expect(bytes.subarray(baseAt + UNIT, outAt).every((byte) => byte === 0xcc)).toBe(true);
    expect(bytes.subarray(end).every((byte) => byte === 0xcc)).toBe(true);
  }
});

test("a room beyond all pages by the room of a unit never runs out", () => {
  // Every fourth byte: the most runs that there can be.
  const bench = new Bench(loadKernels);
  for (const pageBytes of PAGE_SIZES) {
    const base = new Uint8Array(pageBytes);
    for (let step = 4; step < 40; step += 1) {
      const page = base.map((_, at) => (at % step === 0 ? 1 : 0));
      expect(bench.encode(page, base)).not.toBe(null);
    }
  }
});

test("no pages and no units are nothing to do, and an empty delta changes nothing", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const bytes = new Uint8Array(memory.buffer).fill(7);
  const kernels = loadKernels(memory);
  expect(kernels.classify(0, UNIT, 0, 8, 16)).toBe(0);
  expect(kernels.encodeDelta(0, UNIT, 0, 8, 16, 32 * KIB, 16 * KIB, 24)).toBe(0);
  expect(kernels.decodeDelta(100, 0, 4 * KIB)).toBe(0);
  expect(kernels.decodeDeltas(100, 0, 50, 0, 4 * KIB)).toBe(0);
  expect(kernels.decodeDeltas(100, 1, 50, 0, 4 * KIB)).toBe(-1);
  expect(bytes.every((byte) => byte === 7)).toBe(true);
});

/** Encodes and decodes single pages of any size. */
class Bench {
  flag = -1;
  readonly #kernels: Kernels;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #at = { table: 8, flags: 16, lengths: 64, page: 4 * KIB, base: 128 * KIB };
  readonly #outAt = 256 * KIB;

  constructor(load: Load) {
    const memory = new WebAssembly.Memory({ initial: 8 });
    this.#kernels = load(memory);
    this.#bytes = new Uint8Array(memory.buffer);
    this.#view = new DataView(memory.buffer);
  }

  classify(page: Uint8Array, base: Uint8Array | null): { count: number; flag: number } {
    const { table, flags, page: pageAt } = this.#put(page, base);
    const count = this.#kernels.classify(pageAt, page.length, 1, table, flags);
    return { count, flag: this.#bytes[flags] ?? -1 };
  }

  /** The delta of a page, its units one behind the other, or null where it overflows. */
  encode(page: Uint8Array, base: Uint8Array): Uint8Array | null {
    const { table, flags, lengths, page: pageAt } = this.#put(page, base);
    const [out, room] = [this.#outAt, page.length + DELTA_ROOM_BYTES];
    this.#bytes[flags] = PAGE_FLAG.changed;
    const size = this.#kernels.encodeDelta(
      ...[pageAt, page.length, 1, table, flags, out, room, lengths],
    );
    this.flag = this.#bytes[flags] ?? -1;
    return this.flag === PAGE_FLAG.delta ? this.#bytes.slice(out, out + size) : null;
  }

  /** Applies a delta of one unit, or returns null where it is not valid. */
  decode(delta: Uint8Array, base: Uint8Array): { position: number; unit: Uint8Array } | null {
    this.#bytes.set(base, this.#at.base);
    this.#bytes.set(delta, this.#outAt);
    const position = this.#kernels.decodeDelta(this.#outAt, delta.length, this.#at.base);
    if (position < 0) return null;
    return { position, unit: this.#bytes.slice(this.#at.base, this.#at.base + UNIT) };
  }

  #put(page: Uint8Array, base: Uint8Array | null) {
    this.#bytes.set(page, this.#at.page);
    if (base !== null) this.#bytes.set(base, this.#at.base);
    this.#view.setUint32(this.#at.table, base === null ? 0 : this.#at.base, true);
    return this.#at;
  }
}

/** Both encode to the same bytes, and each decodes what the other encoded. */
function expectRoundTrip(
  kernels: Bench,
  reference: Bench,
  { unit, base }: { unit: Uint8Array; base: Uint8Array },
): void {
  const delta = kernels.encode(unit, base);
  const wanted = reference.encode(unit, base);
  if (delta === null || wanted === null) {
    expect(delta).toBe(wanted);
    return;
  }
  expect(isSame(delta, wanted)).toBe(true);
  for (const decoder of [kernels, reference]) {
    const decoded = must(decoder.decode(delta, base), "what was encoded is valid");
    expect(isSame(decoded.unit, unit)).toBe(true);
  }
}

/** ULEB128 as the format has it: one byte or two. */
function numberOf(number: number): number[] {
  return number < 0x80 ? [number] : [(number & 0x7f) | 0x80, number >> 7];
}

function randomBytes(random: Prng, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  random.bytes(bytes);
  return bytes;
}

function pick<T>(random: Prng, ...choices: readonly T[]): T {
  return must(choices[random.below(choices.length)], "a choice is among its choices");
}

/** An assertion for each of thousands of arrays would take minutes. */
function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Makes a byte another one. */
function flip(bytes: Uint8Array, at: number, random: Prng): void {
  bytes[at] = (bytes[at] ?? 0) + 1 + random.below(255);
}

/** Where everything of one random case lies. */
interface Case {
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesAt: number;
  readonly tableAt: number;
  readonly flagsAt: number;
  readonly lengthsAt: number;
  readonly outAt: number;
  readonly roomBytes: number;
  readonly targetAt: number;
}

/** Room for the largest case: pages, bases, targets and output, with random bytes all around. */
const MEMORY_PAGES = 44;
const CASE_PAGES_MAX = 10;
const CASE_BYTES_MAX = 512 * KIB;

/**
 * Classifies and encodes random pages with both, and lets each decode what the other encoded.
 * Throws at the first case where results, or any byte that a contract fixes, differ.
 */
function comparePages(load: Load, random: Prng, runs: number): void {
  const tested = new WebAssembly.Memory({ initial: MEMORY_PAGES });
  const trusted = new WebAssembly.Memory({ initial: MEMORY_PAGES });
  const [kernels, reference] = [load(tested), loadReference(trusted)];
  const [found, wanted] = [new Uint8Array(tested.buffer), new Uint8Array(trusted.buffer)];

  for (let run = 0; run < runs; run += 1) {
    const here = arrange(wanted, random);
    const { pageBytes, pageCount, pagesAt, tableAt, flagsAt, lengthsAt, outAt, roomBytes } = here;
    const unitCount = (pageCount * pageBytes) / UNIT;
    const expectSame = (what: string, a: number, b: number): void => {
      const say = `in run ${run}: ${what} of ${pageCount} pages of ${pageBytes} at ${pagesAt}`;
      if (a !== b) throw new Error(`Results differ ${say}: ${a}, not ${b}`);
      if (!isSame(found, wanted)) throw new Error(`Memories differ ${say}`);
    };
    found.set(wanted);

    const where = [pagesAt, pageBytes, pageCount, tableAt, flagsAt] as const;
    expectSame("classify", kernels.classify(...where), reference.classify(...where));

    const bytes = kernels.encodeDelta(...where, outAt, roomBytes, lengthsAt);
    const bytesWanted = reference.encodeDelta(...where, outAt, roomBytes, lengthsAt);
    const deltas = wanted.subarray(flagsAt, flagsAt + pageCount);
    const lengthsUsed = (deltas.filter((f) => f === PAGE_FLAG.delta).length * pageBytes) / UNIT;
    // What is left over in the room and behind the lengths is nobody's.
    for (const memory of [found, wanted]) {
      memory.fill(0, outAt + bytesWanted, outAt + roomBytes);
      memory.fill(0, lengthsAt + 2 * lengthsUsed, lengthsAt + 2 * unitCount);
    }
    expectSame("encodeDelta", bytes, bytesWanted);

    const apply = [outAt, bytes, lengthsAt, lengthsUsed, here.targetAt] as const;
    const pages = putBases(wanted, here);
    found.set(wanted);
    expectSame("decodeDeltas", kernels.decodeDeltas(...apply), reference.decodeDeltas(...apply));
    const applied = wanted.subarray(here.targetAt, here.targetAt + pages.length);
    if (!isSame(applied, pages)) throw new Error(`Decoded pages differ in run ${run}`);
  }
}

/** Copies the bases of all deltas to the target, dense, and returns the pages that they become. */
function putBases(bytes: Uint8Array, here: Case): Uint8Array {
  const { pageBytes, pagesAt, tableAt, flagsAt, targetAt } = here;
  const view = new DataView(bytes.buffer);
  const pages: number[] = [];
  for (let page = 0; page < here.pageCount; page += 1) {
    if (bytes[flagsAt + page] === PAGE_FLAG.delta) pages.push(page);
  }
  const result = new Uint8Array(pages.length * pageBytes);
  for (const [index, page] of pages.entries()) {
    const baseAt = view.getUint32(tableAt + 4 * page, true);
    bytes.copyWithin(targetAt + index * pageBytes, baseAt, baseAt + pageBytes);
    const at = pagesAt + page * pageBytes;
    result.set(bytes.subarray(at, at + pageBytes), index * pageBytes);
  }
  return result;
}

/** Pages of many kinds with and without bases; whatever is not filled here is random. */
function arrange(bytes: Uint8Array, random: Prng): Case {
  const view = new DataView(bytes.buffer);
  random.bytes(bytes.subarray(0, 64 * KIB));
  for (let at = 64 * KIB; at < bytes.length; at += 64 * KIB) bytes.copyWithin(at, 0, 64 * KIB);

  const pageBytes = pick(random, ...PAGE_SIZES);
  const pageCount = random.below(1 + Math.min(CASE_PAGES_MAX, CASE_BYTES_MAX / pageBytes));
  const allBytes = pageCount * pageBytes;
  let end = 1 + random.below(KIB);
  const take = (size: number): number => {
    const at = end;
    end += size + pick(random, 0, random.below(100), random.below(KIB));
    return at;
  };
  // Enough, or for a few pages, or for none.
  const roomBytes = pick(
    random,
    DELTA_ROOM_BYTES + allBytes,
    DELTA_ROOM_BYTES + random.below(3 * UNIT),
    random.below(DELTA_ROOM_BYTES),
  );
  const here: Case = {
    pageBytes,
    pageCount,
    tableAt: take(4 * pageCount),
    flagsAt: take(pageCount),
    pagesAt: take(allBytes),
    lengthsAt: take((2 * allBytes) / UNIT),
    roomBytes,
    outAt: take(roomBytes),
    targetAt: take(allBytes),
  };
  const sharedBaseAt = take(pageBytes);

  for (let page = 0; page < pageCount; page += 1) {
    const ownBaseAt = take(pageBytes);
    const baseAt = pick(random, ownBaseAt, ownBaseAt, sharedBaseAt);
    const base = bytes.subarray(baseAt, baseAt + pageBytes);
    if (random.below(4) === 0) base.fill(0);
    const at = here.pagesAt + page * pageBytes;
    change(bytes.subarray(at, at + pageBytes), base, random);
    view.setUint32(here.tableAt + 4 * page, random.below(5) === 0 ? 0 : baseAt, true);
  }
  // The shared base may have become zero after a page was made of it: as good a case as any.
  return here;
}

/** Fills a page with what its base may become. */
function change(page: Uint8Array, base: Uint8Array, random: Prng): void {
  if (random.below(8) === 0) {
    page.fill(0);
    return;
  }
  page.set(base);
  if (random.below(8) === 0) return;
  for (let at = 0; at < page.length; at += UNIT) {
    changeUnit(page.subarray(at, at + UNIT), random);
  }
}

function changeUnit(unit: Uint8Array, random: Prng): void {
  const flipEach = (first: number, end: number, step: number): void => {
    for (let at = first; at < end; at += step) flip(unit, at, random);
  };
  const first = random.below(UNIT);
  const end = first + 1 + random.below(UNIT - first);
  const kinds: readonly (() => void)[] = [
    () => {},
    () => flip(unit, pick(random, 0, UNIT - 1, first), random),
    () => flipEach(first, end, 1),
    () => flipEach(0, end, 1),
    () => flipEach(first, UNIT, 1),
    () => flipEach(random.below(2), UNIT, 2),
    () => flipEach(random.below(8), UNIT, 1 + random.below(8)),
    () => random.bytes(unit),
    () => unit.fill(0),
    ...[5, 50, 500, 1000, 4000].map((most) => () => {
      for (let count = random.below(most); count >= 0; count -= 1) {
        flip(unit, random.below(UNIT), random);
      }
    }),
    // Runs and gaps around the lengths where a number becomes longer, and around words.
    () => {
      for (let at = random.below(200); at < UNIT; at += pick(random, 1, 2, 3, 4, 62, 126, 128)) {
        const length = pick(random, 1, 2, 15, 16, 17, 63, 64, 65, 126, 127, 128, 129);
        flipEach(at, Math.min(at + length, UNIT), 1);
        at += length;
      }
    },
  ];
  pick(random, ...kinds)();
}

/** Throws at the first source on whose validity, position or target two decoders differ. */
function compareDecoders(load: Load, random: Prng, runs: number): void {
  const tested = new WebAssembly.Memory({ initial: 1 });
  const trusted = new WebAssembly.Memory({ initial: 1 });
  const [kernels, reference] = [load(tested), loadReference(trusted)];
  const [found, wanted] = [new Uint8Array(tested.buffer), new Uint8Array(trusted.buffer)];
  random.bytes(wanted);
  let validCount = 0;

  for (let run = 0; run < runs; run += 1) {
    const source = hostileDelta(random);
    // By turns one of them is at the very end of the memory, and the other within.
    const isSourceLast = run % 2 === 0;
    const sourceAt = isSourceLast ? wanted.length - source.length : 16 * KIB + random.below(64);
    const targetAt = isSourceLast ? 8 * KIB + random.below(64) : wanted.length - UNIT;
    // Random bytes on both sides: what is behind the source reads like more of it.
    wanted.set(source, sourceAt);
    found.set(wanted);
    const say = `in run ${run} of ${source.length} bytes: ${[...source.subarray(0, 40)]}`;
    const positionWanted = reference.decodeDelta(sourceAt, source.length, targetAt);
    let position: number;
    try {
      position = kernels.decodeDelta(sourceAt, source.length, targetAt);
    } catch (error) {
      throw new Error(`Results differ ${say}: it fails`, { cause: error });
    }
    if (position !== positionWanted) {
      throw new Error(`Results differ ${say}: ${position}, not ${positionWanted}`);
    }
    if (position === -1) {
      found.fill(0, targetAt, targetAt + UNIT);
      random.bytes(wanted.subarray(targetAt, targetAt + UNIT));
      const target = wanted.slice(targetAt, targetAt + UNIT);
      wanted.fill(0, targetAt, targetAt + UNIT);
      if (!isSame(found, wanted)) throw new Error(`Guards differ ${say}`);
      wanted.set(target, targetAt);
      continue;
    }
    validCount += 1;
    if (!isSame(found, wanted)) throw new Error(`Memories differ ${say}`);
  }
  expect(validCount).toBeGreaterThan(runs / 10);
  expect(validCount).toBeLessThan((runs * 9) / 10);
}

/** Often valid, often almost: most of what is random ends at its second run. */
function hostileDelta(random: Prng): Uint8Array {
  if (random.below(8) === 0) return randomBytes(random, random.below(40));
  const source: number[] = [];
  const most = pick(random, 8, 40, 300, 3000);
  const runs = 1 + random.below(pick(random, 3, 60, 400));
  const isEndless = random.below(8) === 0;
  const bytesMax = 8 * KIB;
  for (let run = 0, position = 0; run < runs && source.length < bytesMax; run += 1) {
    if (position >= UNIT && !isEndless) break;
    const skip = (run === 0 ? 0 : 1) + random.below(most);
    const count = 1 + random.below(pick(random, 4, 20, most));
    const isPast = position + skip + count > UNIT;
    if (isPast && !isEndless && random.below(4) > 0) break;
    // Sometimes in the longer form, which is valid as well.
    const isLong = random.below(16) === 0;
    source.push(...(isLong && skip < 0x80 ? [skip | 0x80, 0] : numberOf(skip)));
    source.push(...(isLong && count < 0x80 ? [count | 0x80, 0] : numberOf(count)));
    for (let byte = 0; byte < count; byte += 1) source.push(random.below(256));
    position += skip + count;
  }
  const delta = Uint8Array.from(source);
  const at = random.below(delta.length + 1);
  const damage: readonly (() => Uint8Array)[] = [
    () => delta,
    () => delta,
    () => delta.subarray(0, at),
    () => delta.subarray(0, delta.length - 1),
    () => Uint8Array.of(...source.slice(0, 3000), random.below(256)),
    () => delta.map((byte, index) => (index === at ? random.below(256) : byte)),
    () => delta.map((byte, index) => (index === at ? pick(random, 0, 0x80, 0xff) : byte)),
  ];
  return pick(random, ...damage)();
}

/** A kernel with a fault over the reference, which may change the memory as it likes. */
function broken(breakIt: (right: Kernels, bytes: Uint8Array) => Partial<Kernels>): Load {
  return (memory) => {
    const right = loadReference(memory);
    return { ...right, ...breakIt(right, new Uint8Array(memory.buffer)) };
  };
}

/** What could plausibly go wrong, each over the reference. */
function brokenEncoders(): Record<string, Load> {
  type Encode = Kernels["encodeDelta"];
  const encoder = (change: (encode: Encode, bytes: Uint8Array) => Encode): Load =>
    broken((right, bytes) => ({ encodeDelta: change(right.encodeDelta, bytes) }));

  return {
    "calls a zero page zero though it was zero before": broken((right, bytes) => ({
      classify(at, pageBytes, pageCount, basesAt, flagsAt) {
        const count = right.classify(at, pageBytes, pageCount, basesAt, flagsAt);
        for (let page = 0; page < pageCount; page += 1) {
          const first = at + page * pageBytes;
          const isZero = bytes.subarray(first, first + pageBytes).every((byte) => byte === 0);
          if (isZero) bytes[flagsAt + page] = PAGE_FLAG.zero;
        }
        return count;
      },
    })),
    "does not see the last byte of a page": broken((right, bytes) => ({
      classify(at, pageBytes, pageCount, basesAt, flagsAt) {
        const view = new DataView(bytes.buffer);
        for (let page = 0; page < pageCount; page += 1) {
          const baseAt = view.getUint32(basesAt + 4 * page, true);
          const last = at + (page + 1) * pageBytes - 1;
          if (baseAt !== 0) bytes[last] = bytes[baseAt + pageBytes - 1] ?? 0;
        }
        return right.classify(at, pageBytes, pageCount, basesAt, flagsAt);
      },
    })),
    "takes offset 0 for a base": broken((right, bytes) => ({
      classify(at, pageBytes, pageCount, basesAt, flagsAt) {
        const view = new DataView(bytes.buffer);
        for (let page = 0; page < pageCount; page += 1) {
          if (view.getUint32(basesAt + 4 * page, true) === 0) {
            view.setUint32(basesAt + 4 * page, 1, true);
          }
        }
        return right.classify(at, pageBytes, pageCount, basesAt, flagsAt);
      },
    })),
    "writes behind its room": encoder((encode, bytes) => (...all) => {
      const result = encode(...all);
      const end = all[5] + all[6];
      bytes[end] = (bytes[end] ?? 0) + 1;
      return result;
    }),
    "forgets a byte of its output": encoder((encode, bytes) => (...all) => {
      const result = encode(...all);
      if (result > 0) bytes[all[5] + result - 1] = (bytes[all[5] + result - 1] ?? 0) ^ 1;
      return result;
    }),
    "leaves overflows flagged as changed": encoder((encode, bytes) => (...all) => {
      const result = encode(...all);
      const flags = bytes.subarray(all[4], all[4] + all[2]);
      for (const [page, flag] of flags.entries()) if (flag === PAGE_FLAG.overflow) flags[page] = 0;
      return result;
    }),
    "encodes pages that are zero": encoder((encode, bytes) => (...all) => {
      const flags = bytes.subarray(all[4], all[4] + all[2]);
      for (const [page, flag] of flags.entries()) if (flag === PAGE_FLAG.zero) flags[page] = 0;
      return encode(...all);
    }),
    "ignores the end of its room": encoder((encode) => (...all) => {
      const [at, pageBytes, pageCount, basesAt, flagsAt, outAt, , lengthsAt] = all;
      return encode(at, pageBytes, pageCount, basesAt, flagsAt, outAt, 4096 * KIB, lengthsAt);
    }),
    "has the lengths in the wrong order": encoder((encode, bytes) => (...all) => {
      const result = encode(...all);
      bytes.subarray(all[7], all[7] + 4).reverse();
      return result;
    }),
  };
}

function brokenDecoders(): Record<string, Load> {
  type Decode = Kernels["decodeDelta"];
  const decoder = (change: (decode: Decode, bytes: Uint8Array) => Decode): Load =>
    broken((right, bytes) => ({ decodeDelta: change(right.decodeDelta, bytes) }));

  return {
    "reads on behind the source": decoder((decode) => (sourceAt, sourceBytes, targetAt) => {
      const position = decode(sourceAt, sourceBytes, targetAt);
      return position >= 0 ? position : decode(sourceAt, sourceBytes + 1, targetAt);
    }),
    "has a look behind the source": decoder(
      (decode, bytes) => (sourceAt, sourceBytes, targetAt) => {
        new Uint8Array(bytes.buffer, sourceAt + sourceBytes, 16).at(0);
        return decode(sourceAt, sourceBytes, targetAt);
      },
    ),
    "has a look behind the unit": decoder((decode, bytes) => (sourceAt, sourceBytes, targetAt) => {
      new Uint8Array(bytes.buffer, targetAt + UNIT, 16).at(0);
      return decode(sourceAt, sourceBytes, targetAt);
    }),
    "takes what came before an invalid end": decoder(
      (decode) => (sourceAt, sourceBytes, targetAt) => {
        const position = decode(sourceAt, sourceBytes, targetAt);
        return position >= 0 ? position : decode(sourceAt, sourceBytes - 1, targetAt);
      },
    ),
    "writes behind the unit": decoder((decode, bytes) => (sourceAt, sourceBytes, targetAt) => {
      const position = decode(sourceAt, sourceBytes, targetAt);
      if (position > UNIT - 16) bytes[targetAt + UNIT] = (bytes[targetAt + UNIT] ?? 0) + 1;
      return position;
    }),
    "writes before the unit where the source is bad": decoder(
      (decode, bytes) => (sourceAt, sourceBytes, targetAt) => {
        const position = decode(sourceAt, sourceBytes, targetAt);
        if (position < 0) bytes[targetAt - 1] = (bytes[targetAt - 1] ?? 0) + 1;
        return position;
      },
    ),
    "forgets the last byte of a run": decoder(
      (decode, bytes) => (sourceAt, sourceBytes, targetAt) => {
        const target = bytes.slice(targetAt, targetAt + UNIT);
        const position = decode(sourceAt, sourceBytes, targetAt);
        if (position > 0) bytes[targetAt + position - 1] = target[position - 1] ?? 0;
        return position;
      },
    ),
    "refuses the longer form of a number": decoder(
      (decode, bytes) => (sourceAt, sourceBytes, targetAt) =>
        bytes[sourceAt] === 0x80 ? -1 : decode(sourceAt, sourceBytes, targetAt),
    ),
  };
}
