import { errnoOf } from "../../base/errors.ts";

/** How Node's zlib is asked, by its option `info`: how much of the input was used is told, too. */
export interface Expansion {
  readonly buffer: Uint8Array;
  readonly engine: { readonly bytesWritten: number };
}

/**
 * Options that hold the output to `bytes`, and take it in one piece. With room for one byte more than
 * there may be: where the output is full, Node asks zlib to go on, which then takes a second stream
 * behind the first if that has nothing in it.
 */
export function boundedTo(bytes: number) {
  return { maxOutputLength: bytes, chunkSize: Math.max(bytes + 1, CHUNK_BYTES_MIN), info: true };
}

/** Node takes no smaller pieces. */
const CHUNK_BYTES_MIN = 64;

/** What Node's zlib says of input that is not what it should be; anything else is ours to mend. */
const REFUSALS = /^(ERR_BUFFER_TOO_LARGE|ERR_ZSTD|ERR_ZLIB|ZSTD_|Z_)/;

/** What all of `source` expands to, if it is just `bytes` long; null if the input was bad. */
export function expandedOrNull(
  source: Uint8Array,
  bytes: number,
  expand: () => Expansion,
): Uint8Array | null {
  try {
    const { buffer, engine } = expand();
    return buffer.length === bytes && engine.bytesWritten === source.length ? buffer : null;
  } catch (error) {
    if (REFUSALS.test(errnoOf(error) ?? "")) return null;
    throw error;
  }
}
