import { expect, test } from "vitest";
import { KIB } from "../base/units.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { loadKernels } from "../workers/kernels/kernels.ts";
import { loadReference } from "../workers/kernels/reference.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const PAGE_SIZES = [4 * KIB, 16 * KIB, 64 * KIB] as const;
const seed = seedFromEnvironment();

/** The package that hashes frames is the oracle: it is not ours. */
const oracle = await loadChecksum();

const HASHES_AT = 64;
const PAGES_AT = 4 * KIB;

/** What the kernel finds, with every byte around pages and hashes as it was. */
function hashed(pages: readonly Uint8Array[], at = PAGES_AT, load = loadKernels): bigint[] {
  const pageBytes = pages[0]?.length ?? 4 * KIB;
  const bytesNeeded = at + pages.length * pageBytes + 64;
  const memory = new WebAssembly.Memory({ initial: Math.ceil(bytesNeeded / (64 * KIB)) });
  const bytes = new Uint8Array(memory.buffer).fill(0xa5);
  for (const [index, page] of pages.entries()) bytes.set(page, at + index * pageBytes);
  const before = bytes.slice();
  load(memory).hashPages(at, pageBytes, pages.length, HASHES_AT);
  const view = new DataView(memory.buffer);
  const hashes = pages.map((_, index) => view.getBigUint64(HASHES_AT + 8 * index, true));
  for (const [index, hash] of hashes.entries()) {
    new DataView(before.buffer).setBigUint64(HASHES_AT + 8 * index, hash, true);
  }
  expect(Buffer.compare(bytes, before)).toBe(0);
  return hashes;
}

/** Pages that a hash could be wrong about: bits at edges, signs, carries, equal stripes. */
function adversarialPages(pageBytes: number): Uint8Array[] {
  const page = (fill: (bytes: Uint8Array) => void): Uint8Array => {
    const bytes = new Uint8Array(pageBytes);
    fill(bytes);
    return bytes;
  };
  const edges = [0, 7, 8, 31, 32, pageBytes - 32, pageBytes - 1];
  return [
    page(() => {}),
    page((bytes) => bytes.fill(0xff)),
    page((bytes) => bytes.fill(0x80)),
    page((bytes) => new Float64Array(bytes.buffer).fill(-0)),
    page((bytes) => bytes.set(bytes.map((_, at) => at))),
    page((bytes) => bytes.set(bytes.map((_, at) => at >> 5))),
    ...edges.flatMap((at) => [1, 0x80].map((byte) => page((bytes) => bytes.set([byte], at)))),
  ];
}

for (const pageBytes of PAGE_SIZES) {
  test(`pages of ${pageBytes} have the hashes that xxhash-wasm gives them (SEED=${seed})`, () => {
    const random = new Prng(seed);
    const randomPages = Array.from({ length: 20 }, () => {
      const bytes = new Uint8Array(pageBytes);
      random.bytes(bytes);
      return bytes;
    });
    const pages = [...adversarialPages(pageBytes), ...randomPages];
    const hashes = hashed(pages);
    expect(hashes).toEqual(pages.map((bytes) => oracle.of(bytes)));
    expect(new Set(hashes).size).toBe(pages.length);
    // At any alignment, one at a time.
    for (const bytes of pages.slice(-4)) {
      expect(hashed([bytes], PAGES_AT + 1 + random.below(63))).toEqual([oracle.of(bytes)]);
    }
  });

  test(`the reference hashes pages of ${pageBytes} as the oracle does (SEED=${seed})`, () => {
    const page = new Uint8Array(pageBytes);
    new Prng(seed).bytes(page);
    const pages = [page, ...adversarialPages(pageBytes).slice(0, 4)];
    expect(hashed(pages, PAGES_AT, loadReference as typeof loadKernels)).toEqual(
      pages.map((bytes) => oracle.of(bytes)),
    );
  });
}

test("every byte of a page counts", () => {
  const page = new Uint8Array(4 * KIB).fill(3);
  const memory = new WebAssembly.Memory({ initial: 1 });
  const bytes = new Uint8Array(memory.buffer);
  const view = new DataView(memory.buffer);
  const { hashPages } = loadKernels(memory);
  bytes.set(page, PAGES_AT);
  const seen = new Set<bigint>();
  for (let at = 0; at < page.length; at += 1) {
    bytes[PAGES_AT + at] = 4;
    hashPages(PAGES_AT, page.length, 1, HASHES_AT);
    seen.add(view.getBigUint64(HASHES_AT, true));
    bytes[PAGES_AT + at] = 3;
  }
  expect(seen.size).toBe(page.length);
});

test("no pages have no hashes", () => {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const bytes = new Uint8Array(memory.buffer).fill(9);
  loadKernels(memory).hashPages(PAGES_AT, 4 * KIB, 0, HASHES_AT);
  expect(bytes.every((byte) => byte === 9)).toBe(true);
});
