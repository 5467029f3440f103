import { readFileSync } from "node:fs";
import { assert } from "../../base/assert.ts";

/**
 * Kernels are the inner loops over page bytes, compiled from AssemblyScript to WebAssembly with
 * SIMD. They work in place on one thread's own memory, where its stable copies of guest pages are,
 * and import nothing but that memory. They take byte offsets into it and return integers.
 *
 * A kernel reads and writes only the ranges that its contract names. It checks nothing: a range
 * that leaves the memory traps (`WebAssembly.RuntimeError`), any other broken contract gives a
 * wrong answer, so callers assert. Offsets may have any alignment; a multiple of 64 is fastest.
 */
export interface Kernels extends ZeroKernels, DeltaKernels, HashKernels {}

/** The family "zero": pages that are all zero are found and left out. */
export interface ZeroKernels {
  /**
   * Looks at `pageCount` pages of `pageBytes` each, dense from `at` on, and writes one byte per page
   * at `flagsAt`: 1 where every bit of the page is zero, else 0. Returns the number of zero pages.
   * `pageBytes` must be a positive multiple of 4096; the flags must not overlap the pages.
   */
  scanZero(at: number, pageBytes: number, pageCount: number, flagsAt: number): number;

  /**
   * Moves the pages whose flag at `flagsAt` is 0 down over the others, so that they lie dense and in
   * order from `at` on, and returns how many they are. What follows them in the range is left over
   * from the moves. Takes pages and flags as `scanZero` does, and any flag but 0 drops its page.
   */
  moveRaw(at: number, pageBytes: number, pageCount: number, flagsAt: number): number;
}

/** What `classify` and `encodeDelta` found out about a page; a byte of a table of flags each. */
export const PAGE_FLAG = {
  /** Neither zero nor as the cached version was. */
  changed: 0,
  zero: 1,
  /** As the cached version, so that nothing has to be sent, not even that it is zero. */
  unchanged: 2,
  /** Its delta would save nothing: send it raw. */
  overflow: 3,
  delta: 4,
} as const;

/** Deltas are made of units of this many bytes, whatever the size of a page. */
export const DELTA_UNIT_BYTES = 4096;

/**
 * What `encodeDelta` needs of its room for output, beyond the output so far, to try a unit: the
 * unit itself, which may turn out not to fit, and what the kernel notes down while it works on it.
 */
export const DELTA_ROOM_BYTES = 9216;

/**
 * The family "delta": pages as differences from a cached version of them, their base.
 *
 * A unit is encoded as in QEMU's xbzrle: runs, each of the number of unchanged bytes before it, the
 * number of its bytes, and these bytes as they are now. Both numbers are ULEB128 of one or two
 * bytes, so less than 16384. Unchanged bytes at the end are left out: an unchanged unit is empty.
 *
 * `basesAt` is a table of u32 offsets into the memory, one per page: where its base begins, or 0
 * where it has none. Tables may have any alignment; none may overlap pages, bases or output.
 */
export interface DeltaKernels {
  /**
   * Looks at `pageCount` pages of `pageBytes` each, dense from `at` on, and their bases, and writes
   * a flag per page at `flagsAt`: unchanged, else zero, else changed. So a zero page whose base is
   * zero is unchanged. Returns how many are changed. `pageBytes` must be a multiple of 4096.
   */
  classify(
    at: number,
    pageBytes: number,
    pageCount: number,
    basesAt: number,
    flagsAt: number,
  ): number;

  /**
   * Encodes each page that is flagged as changed and has a base. Writes the encodings of its units
   * at `outAt`, dense and in order, and a u16 with the length of each at `lengthsAt`, and flags it
   * as a delta. Other pages are passed over. A page overflows, is flagged so and leaves no output
   * - where a unit takes 4096 bytes or more,
   * - where its units and 2 bytes for each of them do not together take less than `pageBytes`,
   * - where less than `DELTA_ROOM_BYTES` of the room are left as a unit begins: a room that is
   *   larger by this than all pages together never runs out.
   * Returns the bytes of output. All `outBytesMax` of the room may be written, and lengths for all
   * units of all pages; what is behind the output and behind the lengths in use is left over.
   *
   * Runs that have only one or two unchanged bytes between them are merged, as these cost no more
   * than the numbers of another run. Takes pages, bases and flags as `classify` does.
   */
  encodeDelta(
    at: number,
    pageBytes: number,
    pageCount: number,
    basesAt: number,
    flagsAt: number,
    outAt: number,
    outBytesMax: number,
    lengthsAt: number,
  ): number;

  /**
   * Applies the encoding of one unit, `sourceBytes` from `sourceAt` on, to the 4096 bytes at
   * `targetAt`, which hold its base. The encoding comes from the peer and may be anything. Returns
   * the position behind the last run, or -1 where it is not valid; the target is then partly
   * written and must be thrown away. Reads nothing but the encoding and writes nothing but the
   * target.
   *
   * Valid is what QEMU takes: at least 2 bytes are left wherever a number begins, no number goes on
   * beyond its second byte, only the first run may follow 0 unchanged bytes, each run has bytes,
   * and neither source nor target is overrun. Longer forms of a number, and lengths of 4096 or more
   * that the encoder would not produce, are valid.
   */
  decodeDelta(sourceAt: number, sourceBytes: number, targetAt: number): number;

  /**
   * Applies `unitCount` encodings, dense from `sourceAt` on, with their u16 lengths at `lengthsAt`,
   * to the units that lie dense from `targetAt` on and hold their bases. Returns 0, or -1 where an
   * encoding is not valid or the lengths are not together `sourceBytes`: the targets are then
   * partly written. Source and lengths come from the peer and may be anything.
   */
  decodeDeltas(
    sourceAt: number,
    sourceBytes: number,
    lengthsAt: number,
    unitCount: number,
    targetAt: number,
  ): number;
}

/** The family "hash": what tells whether a page is as it was. */
export interface HashKernels {
  /**
   * Writes the xxHash64 (seed 0) of each of `pageCount` pages of `pageBytes`, dense from `at` on,
   * as a u64 at `hashesAt`: little-endian, dense. `pageBytes` must be a positive multiple of 32; the
   * hashes must not overlap the pages.
   */
  hashPages(at: number, pageBytes: number, pageCount: number, hashesAt: number): void;
}

/**
 * The family of every kernel. `source/<family>.ts` is compiled to `<family>.wasm` by `npm run
 * kernels`, and both are committed. A new family is its source, its contracts and its rows here.
 */
const FAMILY_OF: { readonly [name in keyof Kernels]: string } = {
  scanZero: "zero",
  moveRaw: "zero",
  classify: "delta",
  encodeDelta: "delta",
  decodeDelta: "delta",
  decodeDeltas: "delta",
  hashPages: "hash",
};

export const KERNEL_FAMILIES: readonly string[] = [...new Set(Object.values(FAMILY_OF))];

/** Compiled once per thread; threads of one process share the machine code behind it. */
const modules = new Map<string, WebAssembly.Module>();

/**
 * The kernels over `memory`, which must not be shared: it is this thread's own. Synchronous, for
 * threads that have no event loop. It may be called for several memories, and a memory may grow.
 */
export function loadKernels(memory: WebAssembly.Memory): Kernels {
  const exports: WebAssembly.Exports = {};
  for (const family of KERNEL_FAMILIES) {
    Object.assign(exports, new WebAssembly.Instance(moduleOf(family), { env: { memory } }).exports);
  }
  for (const name of Object.keys(FAMILY_OF)) {
    assert(typeof exports[name] === "function", "every kernel of the table was compiled");
  }
  return exports as unknown as Kernels;
}

function moduleOf(family: string): WebAssembly.Module {
  const known = modules.get(family);
  if (known !== undefined) return known;
  const compiled = new WebAssembly.Module(readFileSync(kernelFile(family)));
  modules.set(family, compiled);
  return compiled;
}

/** Where the compiled family lies: beside this file, in the sources as in the package. */
export function kernelFile(family: string): URL {
  return new URL(`${family}.wasm`, import.meta.url);
}
