import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import type { Codec } from "./codec.ts";
import { boundedTo, type Expansion, expandedOrNull } from "./expanded.ts";

/** A payload is no larger than 1 MiB, so no window needs to be: memory that a peer can ask for. */
const WINDOW_LOG_MAX = 20;

export const zstd: Codec = {
  number: 1,
  name: "zstd",
  meaning: "Zstandard (RFC 8878) with a window of 1 MiB at most, by Node's zlib: the fast codec.",
  compress: (source, level) => {
    const params = { [constants.ZSTD_c_compressionLevel]: level };
    return zstdCompressSync(source, { chunkSize: outputBytesMax(source.length), params });
  },
  expand: (source, bytes) => {
    const params = { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG_MAX };
    const options = { ...boundedTo(bytes), params };
    return expandedOrNull(
      source,
      bytes,
      () => zstdDecompressSync(source, options) as unknown as Expansion,
    );
  },
};

/**
 * Room for whatever comes out, so that Node takes it in one piece. With its pieces of 16 KiB, memory
 * that does not shrink is compressed at 0.33 instead of 4.4 GB/s, and a frame that just fills one is
 * followed by an empty frame, which the wire does not allow. Zstandard's own bound is less.
 */
function outputBytesMax(bytes: number): number {
  return bytes + Math.ceil(bytes / 128) + 1024;
}
