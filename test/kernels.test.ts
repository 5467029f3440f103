import { expect, test } from "vitest";
import { KIB } from "../base/units.ts";
import { type Kernels, loadKernels } from "../workers/kernels/kernels.ts";
import { loadReference } from "../workers/kernels/reference.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const PAGE_SIZES = [4 * KIB, 16 * KIB, 64 * KIB] as const;
const seed = seedFromEnvironment();

/** Room for the largest case and for what lies around it; see `Case`. */
const MEMORY_PAGES = 32;

interface Case {
  readonly at: number;
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly flagsAt: number;
}

test(`the kernels agree with their reference on random pages (SEED=${seed})`, () => {
  expect(() => compareOften(loadKernels, new Prng(seed))).not.toThrow();
});

for (const [fault, load] of Object.entries(brokenKernels())) {
  test(`the comparison catches a kernel that ${fault} (SEED=${seed})`, () => {
    expect(() => compareOften(load, new Prng(seed))).toThrow("differ");
  });
}

for (const pageBytes of PAGE_SIZES) {
  for (const byte of [0x01, 0x80, 0xff]) {
    test(`one byte of ${byte} anywhere in ${pageBytes} makes a page nonzero`, () => {
      const memory = new WebAssembly.Memory({ initial: 4 });
      const { scanZero } = loadKernels(memory);
      const bytes = new Uint8Array(memory.buffer);
      const [at, flagsAt] = [64 * KIB, 0];
      const missed: number[] = [];

      for (let position = 0; position < pageBytes; position += 1) {
        bytes[at + position] = byte;
        bytes[flagsAt] = 1;
        if (scanZero(at, pageBytes, 1, flagsAt) !== 0 || bytes[flagsAt] !== 0)
          missed.push(position);
        bytes[at + position] = 0;
      }
      expect(missed).toEqual([]);
      expect(scanZero(at, pageBytes, 1, flagsAt)).toBe(1);
      expect(bytes[flagsAt]).toBe(1);
    });
  }
}

test("bytes beside a zero page do not make it nonzero, at any alignment", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { scanZero } = loadKernels(memory);
  const bytes = new Uint8Array(memory.buffer);
  for (let at = 1; at <= 256; at += 1) {
    bytes.fill(0xff).fill(0, at, at + 4 * KIB);
    expect(scanZero(at, 4 * KIB, 1, 32 * KIB)).toBe(1);
  }
});

test("a page of negative zeros is not zero", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  new Float64Array(memory.buffer, 0, 512).fill(-0);
  expect(loadKernels(memory).scanZero(0, 4 * KIB, 1, 4 * KIB)).toBe(0);
});

test("no pages are no zero pages, and nothing is touched", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const bytes = new Uint8Array(memory.buffer).fill(7);
  const kernels = loadKernels(memory);
  expect(kernels.scanZero(0, 4 * KIB, 0, 32 * KIB)).toBe(0);
  expect(kernels.moveRaw(0, 4 * KIB, 0, 32 * KIB)).toBe(0);
  expect(bytes.every((byte) => byte === 7)).toBe(true);
});

test("pages up to the last byte of the memory are read, and one byte more traps", () => {
  const memory = new WebAssembly.Memory({ initial: 2 });
  const { scanZero } = loadKernels(memory);
  const at = 128 * KIB - 3 * 4 * KIB;
  expect(scanZero(at, 4 * KIB, 3, 0)).toBe(3);
  expect(() => scanZero(at + 1, 4 * KIB, 3, 0)).toThrow(WebAssembly.RuntimeError);
});

test("kernels follow a memory that grows", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { scanZero } = loadKernels(memory);
  memory.grow(1);
  expect(scanZero(64 * KIB, 16 * KIB, 4, 0)).toBe(4);
});

test("a shared memory is refused: a kernel's pages must hold still", () => {
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  expect(() => loadKernels(memory)).toThrow(WebAssembly.LinkError);
});

/** Throws at the first random case where results or any byte of the memories differ. */
function compareOften(load: (memory: WebAssembly.Memory) => Kernels, random: Prng): void {
  const tested = new WebAssembly.Memory({ initial: MEMORY_PAGES });
  const trusted = new WebAssembly.Memory({ initial: MEMORY_PAGES });
  const kernels = load(tested);
  const reference = loadReference(trusted);

  for (let run = 0; run < 60; run += 1) {
    const { at, pageBytes, pageCount, flagsAt } = arrange(trusted, random);
    new Uint8Array(tested.buffer).set(new Uint8Array(trusted.buffer));
    for (const name of ["scanZero", "moveRaw"] as const) {
      const found = kernels[name](at, pageBytes, pageCount, flagsAt);
      const wanted = reference[name](at, pageBytes, pageCount, flagsAt);
      const say = `in run ${run} of ${name}: ${pageCount} pages of ${pageBytes} at ${at}`;
      if (found !== wanted) throw new Error(`Results differ ${say}: ${found}, not ${wanted}`);
      if (Buffer.compare(new Uint8Array(tested.buffer), new Uint8Array(trusted.buffer)) !== 0) {
        throw new Error(`Memories differ ${say}`);
      }
    }
  }
}

/** Pages of a few kinds, with random bytes all around them and around their flags. */
function arrange(memory: WebAssembly.Memory, random: Prng): Case {
  const bytes = new Uint8Array(memory.buffer);
  const pageBytes = PAGE_SIZES[random.below(PAGE_SIZES.length)] ?? 4 * KIB;
  const pageCount = random.below(16);
  const at = 64 * KIB + random.below(4 * KIB);
  const isFlagsFirst = random.below(2) === 0;
  const flagsAt = isFlagsFirst ? random.below(32 * KIB) : at + pageCount * pageBytes;

  // Guard bytes: kernels must neither read past an edge into them nor change them.
  random.bytes(bytes.subarray(0, at + pageCount * pageBytes + 8 * KIB));
  for (let page = 0; page < pageCount; page += 1) {
    const first = at + page * pageBytes;
    fillPage(bytes.subarray(first, first + pageBytes), random);
  }
  return { at, pageBytes, pageCount, flagsAt };
}

/** Zero as often as not: runs of both kinds are what `moveRaw` has to get right. */
function fillPage(page: Uint8Array, random: Prng): void {
  const kind = random.below(8);
  if (kind < 2) return; // Random bytes, from before.
  page.fill(0);
  if (kind < 5) return;
  const position = [0, page.length - 1, random.below(page.length)][random.below(3)] ?? 0;
  page[position] = random.below(2) === 0 ? 0x80 : 1 << random.below(8);
}

/** What could plausibly go wrong in a kernel, each over the reference. */
function brokenKernels(): Record<string, (memory: WebAssembly.Memory) => Kernels> {
  const broken =
    (breakIt: (right: Kernels, bytes: Uint8Array) => Partial<Kernels>) =>
    (memory: WebAssembly.Memory): Kernels => {
      const right = loadReference(memory);
      return { ...right, ...breakIt(right, new Uint8Array(memory.buffer)) };
    };
  const scanWith = (isZero: (page: Uint8Array) => boolean) =>
    broken((_, bytes) => ({
      scanZero(at, pageBytes, pageCount, flagsAt) {
        let zeroCount = 0;
        for (let page = 0; page < pageCount; page += 1) {
          const first = at + page * pageBytes;
          const zero = isZero(bytes.subarray(first, first + pageBytes)) ? 1 : 0;
          bytes[flagsAt + page] = zero;
          zeroCount += zero;
        }
        return zeroCount;
      },
    }));

  return {
    "skips the last vector": scanWith((page) => page.subarray(0, -16).every((byte) => byte === 0)),
    "compares as floats": scanWith((page) =>
      new Float64Array(page.slice().buffer).every((number) => number === 0),
    ),
    "writes one flag too many": broken((right, bytes) => ({
      scanZero(at, pageBytes, pageCount, flagsAt) {
        bytes[flagsAt + pageCount] = 0;
        return right.scanZero(at, pageBytes, pageCount, flagsAt);
      },
    })),
    "counts but does not move": broken((_, bytes) => ({
      moveRaw: (_at, _pageBytes, pageCount, flagsAt) =>
        bytes.subarray(flagsAt, flagsAt + pageCount).filter((flag) => flag === 0).length,
    })),
    "keeps the wrong pages": broken((right, bytes) => ({
      moveRaw(at, pageBytes, pageCount, flagsAt) {
        const kept = right.moveRaw(at, pageBytes, pageCount, flagsAt);
        if (kept > 1) bytes.copyWithin(at, at + pageBytes, at + 2 * pageBytes);
        return kept;
      },
    })),
  };
}
