import { assert } from "../../base/assert.ts";
import type { Codec } from "./codec.ts";
import { deflate } from "./deflate.ts";
import { zstd } from "./zstd.ts";

/** Every codec there is. */
export const CODECS: readonly Codec[] = [zstd, deflate];

const BY_NUMBER = new Map(CODECS.map((codec) => [codec.number, codec]));
assert(BY_NUMBER.size === CODECS.length, "codec numbers are unique");
assert(!BY_NUMBER.has(0), "zero means that a payload is not compressed");

export function codecOf(number: number): Codec | undefined {
  return BY_NUMBER.get(number);
}

export function codecNamed(name: string): Codec | undefined {
  return CODECS.find((codec) => codec.name === name);
}
