import { assert } from "../../base/assert.ts";
import { delta } from "./delta.ts";
import type { PageEncoding } from "./encoding.ts";
import { raw } from "./raw.ts";
import { zero } from "./zero.ts";

/** Every encoding there is, cheapest description first. */
export const ENCODINGS: readonly PageEncoding[] = [zero, delta, raw];

const BY_NUMBER = new Map(ENCODINGS.map((encoding) => [encoding.number, encoding]));
assert(BY_NUMBER.size === ENCODINGS.length, "encoding numbers are unique");
assert(!BY_NUMBER.has(0), "zero is never a valid encoding");

export function encodingOf(number: number): PageEncoding | undefined {
  return BY_NUMBER.get(number);
}
