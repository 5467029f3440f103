import { assert } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import { HEADER_BYTES, PAGES_HEAD_BYTES, RUN_BYTES, RUNS_MAX } from "../channels/frame.ts";
import {
  DELTA_ROOM_BYTES,
  DELTA_UNIT_BYTES,
  type Kernels,
  loadKernels,
} from "./kernels/kernels.ts";

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

/** Deltas are made of units of 4 KiB, for which the lengths of QEMU's encoding are made. */
export const UNIT_BYTES = DELTA_UNIT_BYTES;
const PIECE_UNITS = PIECE_BYTES / UNIT_BYTES;

/** What a page has beside its delta: a generation and a length per unit; see encodings/delta.ts. */
export const DELTA_HEAD_BYTES_MAX = PIECE_PAGES_MAX * 4 + PIECE_UNITS * 2;

/**
 * One thread's own memory, where kernels work on stable copies of guest pages:
 *
 *   0              the head of a frame, written so that it ends where the pages begin
 *   PAGES_AT       a piece: pages, dense; later the payload of a frame
 *   DELTAS_AT      deltas, dense
 *   LENGTHS_AT     u16 per unit of a page that has a delta
 *   BASES_AT       u32 per page: where its cached version lies, 0 for none
 *   FLAGS_AT       a byte per page, see PAGE_FLAG
 *   HASHES_AT      u64 per page
 *   CACHE_AT       cached versions of pages
 */
export const PAGES_AT = Math.ceil(HEAD_BYTES_MAX / (4 * KIB)) * 4 * KIB;
const DELTAS_AT = PAGES_AT + PIECE_BYTES + Math.ceil(DELTA_HEAD_BYTES_MAX / 64) * 64;
/** With this room no delta of a piece is ever left out for want of it. */
const DELTAS_BYTES = PIECE_BYTES + DELTA_ROOM_BYTES;
const LENGTHS_AT = DELTAS_AT + DELTAS_BYTES;
const BASES_AT = LENGTHS_AT + PIECE_UNITS * 2;
const FLAGS_AT = BASES_AT + PIECE_PAGES_MAX * 4;
const HASHES_AT = FLAGS_AT + PIECE_PAGES_MAX;
export const CACHE_AT = Math.ceil((HASHES_AT + PIECE_PAGES_MAX * 8) / (4 * KIB)) * 4 * KIB;

/** Linear memory has 32-bit addresses. */
export const CACHE_BYTES_MAX = 2 ** 32 - CACHE_AT - WASM_PAGE_BYTES;

export class Workbench {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly flags: Uint8Array;
  readonly bases: Uint32Array;
  /** Two words per page: the low half of its hash and the high one. */
  readonly hashes: Int32Array;
  readonly lengths: Uint16Array;
  readonly deltas: Uint8Array;
  readonly #kernels: Kernels;

  /** With room for `cacheBytes` of cached pages, which are not resident before they are used. */
  constructor(cacheBytes = 0) {
    assert(cacheBytes <= CACHE_BYTES_MAX, "a cache has 32-bit addresses");
    const pages = Math.ceil((CACHE_AT + cacheBytes) / WASM_PAGE_BYTES);
    const memory = new WebAssembly.Memory({ initial: pages });
    const { buffer } = memory;
    this.bytes = new Uint8Array(buffer);
    this.view = new DataView(buffer);
    this.flags = new Uint8Array(buffer, FLAGS_AT, PIECE_PAGES_MAX);
    this.bases = new Uint32Array(buffer, BASES_AT, PIECE_PAGES_MAX);
    this.hashes = new Int32Array(buffer, HASHES_AT, PIECE_PAGES_MAX * 2);
    this.lengths = new Uint16Array(buffer, LENGTHS_AT, PIECE_UNITS);
    this.deltas = new Uint8Array(buffer, DELTAS_AT, DELTAS_BYTES);
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

  /** Flags zero pages, and those that equal their base, in one pass. */
  classify(pages: number, pageBytes: number): void {
    assert(pages * pageBytes <= PIECE_BYTES, "a piece has a limit");
    this.#kernels.classify(PAGES_AT, pageBytes, pages, BASES_AT, FLAGS_AT);
  }

  /**
   * Makes deltas of the changed pages that have a base, as far as they save something, and flags
   * them. Returns their bytes in `deltas`; `lengths` has what each of their units takes.
   */
  encodeDeltas(pages: number, pageBytes: number): number {
    assert(pages * pageBytes <= PIECE_BYTES, "a piece has a limit");
    return this.#kernels.encodeDelta(
      PAGES_AT,
      pageBytes,
      pages,
      BASES_AT,
      FLAGS_AT,
      DELTAS_AT,
      DELTAS_BYTES,
      LENGTHS_AT,
    );
  }

  /**
   * Applies the deltas of `units` units (in `deltas`, with their `lengths`) to the piece, which
   * holds their bases. False for whatever is no delta; the piece is then spoilt.
   */
  decodeDeltas(units: number, deltaBytes: number): boolean {
    assert(units <= PIECE_UNITS && deltaBytes <= PIECE_BYTES, "a piece has a limit");
    return this.#kernels.decodeDeltas(DELTAS_AT, deltaBytes, LENGTHS_AT, units, PAGES_AT) === 0;
  }

  /** Hashes `pages` pages of the piece, from its page `first` on: xxHash64, in `hashes`. */
  hash(first: number, pages: number, pageBytes: number): void {
    assert((first + pages) * pageBytes <= PIECE_BYTES, "a piece has a limit");
    this.#kernels.hashPages(PAGES_AT + first * pageBytes, pageBytes, pages, HASHES_AT);
  }

  /**
   * Moves those of `pages` pages that are not flagged together, from page `first` of the piece on
   * (whose flag is the first one), and returns how many they are.
   */
  dropFlagged(pages: number, pageBytes: number, first = 0): number {
    assert((first + pages) * pageBytes <= PIECE_BYTES, "a piece has a limit");
    return this.#kernels.moveRaw(PAGES_AT + first * pageBytes, pageBytes, pages, FLAGS_AT);
  }
}
