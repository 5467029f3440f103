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
export interface Kernels extends ZeroKernels {}

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

/**
 * The family of every kernel. `source/<family>.ts` is compiled to `<family>.wasm` by `npm run
 * kernels`, and both are committed. A new family is its source, its contracts and its rows here.
 */
const FAMILY_OF: { readonly [name in keyof Kernels]: string } = {
  scanZero: "zero",
  moveRaw: "zero",
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
