import { assert } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import { HEADER_BYTES, PAGES_HEAD_BYTES, RUN_BYTES, RUNS_MAX } from "../channels/frame.ts";
import { type Kernels, loadKernels } from "./kernels/kernels.ts";

/**
 * Bytes of pages that are looked at together and travel in one frame: with 512 KiB the stable copy
 * stays in a core's cache from the copy to the write, and one write moves enough to be worth its
 * system call.
 */
export const PIECE_BYTES = 512 * KIB;

const HEAD_BYTES_MAX = HEADER_BYTES + PAGES_HEAD_BYTES + RUNS_MAX * RUN_BYTES;
const WASM_PAGE_BYTES = 64 * KIB;

/** The smallest page is 4 KiB, so a piece has at most this many. */
export const PIECE_PAGES_MAX = PIECE_BYTES / (4 * KIB);
assert(PIECE_PAGES_MAX <= RUNS_MAX, "a frame has room for a run per page");

/**
 * One thread's own memory, where kernels work on stable copies of guest pages:
 *
 *   0              the head of a frame, written so that it ends where the pages begin
 *   PAGES_AT       a piece: pages, dense
 *   FLAGS_AT       one byte per page
 */
export const PAGES_AT = Math.ceil(HEAD_BYTES_MAX / (4 * KIB)) * 4 * KIB;
const FLAGS_AT = PAGES_AT + PIECE_BYTES;
const BYTES = FLAGS_AT + PIECE_PAGES_MAX;

export class Workbench {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Per page of the last `scanZero`: 1 zero, 0 not. */
  readonly flags: Uint8Array;
  readonly #kernels: Kernels;

  constructor() {
    const memory = new WebAssembly.Memory({ initial: Math.ceil(BYTES / WASM_PAGE_BYTES) });
    this.bytes = new Uint8Array(memory.buffer);
    this.view = new DataView(memory.buffer);
    this.flags = this.bytes.subarray(FLAGS_AT, FLAGS_AT + PIECE_PAGES_MAX);
    this.#kernels = loadKernels(memory);
  }

  /** The first `bytes` of the piece. */
  piece(bytes: number): Uint8Array {
    assert(bytes <= PIECE_BYTES, "a piece has a limit");
    return this.bytes.subarray(PAGES_AT, PAGES_AT + bytes);
  }

  /** Flags the zero pages among the first `pages` of the piece and returns how many there are. */
  scanZero(pages: number, pageBytes: number): number {
    assert(pages * pageBytes <= PIECE_BYTES, "a piece has a limit");
    return this.#kernels.scanZero(PAGES_AT, pageBytes, pages, FLAGS_AT);
  }

  /** Moves the pages that are not flagged together at the start and returns how many they are. */
  dropZero(pages: number, pageBytes: number): number {
    assert(pages * pageBytes <= PIECE_BYTES, "a piece has a limit");
    return this.#kernels.moveRaw(PAGES_AT, pageBytes, pages, FLAGS_AT);
  }
}
