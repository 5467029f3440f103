import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import type { Codec } from "./codec.ts";
import { boundedTo, type Expansion, expandedOrNull } from "./expanded.ts";

/** A payload is no larger than 1 MiB, so no window needs to be: memory that a peer can ask for. */
const WINDOW_LOG_MAX = 20;

export const zstd: Codec = {
  number: 1,
  name: "zstd",
  meaning: "Zstandard (RFC 8878) with a window of 1 MiB at most, by Node's zlib: the fast codec.",
  compress: (source, level) =>
    zstdCompressSync(source, { params: { [constants.ZSTD_c_compressionLevel]: level } }),
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
