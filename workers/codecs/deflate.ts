import { inflateRawSync } from "node:zlib";
import { deflateSync } from "fflate";
import type { Codec } from "./codec.ts";
import { boundedTo, type Expansion, expandedOrNull } from "./expanded.ts";

/**
 * Compressed by fflate, which runs wherever JavaScript does. Expanded by Node's zlib, whose limit on
 * the output holds against hostile input; fflate has none.
 */
export const deflate: Codec = {
  number: 2,
  name: "deflate",
  meaning: "A raw DEFLATE stream (RFC 1951): the codec that every language has.",
  compress: (source, level) => deflateSync(source, { level: level as 1 }),
  expand: (source, bytes) =>
    expandedOrNull(
      source,
      bytes,
      () => inflateRawSync(source, boundedTo(bytes)) as unknown as Expansion,
    ),
};
