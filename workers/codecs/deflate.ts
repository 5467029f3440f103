import { createRequire } from "node:module";
import { inflateRawSync } from "node:zlib";
import type { Codec } from "./codec.ts";
import { boundedTo, type Expansion, expandedOrNull } from "./expanded.ts";

/** Loaded when it is needed: threads that do not need it start sooner. */
const load = createRequire(import.meta.url);

/**
 * Compressed by fflate, which runs wherever JavaScript does. Expanded by Node's zlib, whose limit on
 * the output holds against hostile input; fflate has none.
 */
export const deflate: Codec = {
  number: 2,
  name: "deflate",
  meaning: "A raw DEFLATE stream (RFC 1951): the codec that every language has.",
  compress: (source, level) => {
    const { deflateSync } = load("fflate") as typeof import("fflate");
    return deflateSync(source, { level: level as 1 });
  },
  expand: (source, bytes) =>
    expandedOrNull(
      source,
      bytes,
      () => inflateRawSync(source, boundedTo(bytes)) as unknown as Expansion,
    ),
};
