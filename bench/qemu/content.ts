import { createCipheriv } from "node:crypto";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { assert } from "../../base/assert.ts";
import { Prng } from "../../test/prng.ts";
import { TEXT_BYTES, textOf } from "../text.ts";
import { PAGE_BYTES } from "../workloads.ts";

/** Memory of one kind lies together, as a file's pages or a heap do. */
export const GROUP_BYTES = 64 * PAGE_BYTES;

const KINDS = ["zero", "text", "random"] as const;
export type Kind = (typeof KINDS)[number];

/**
 * Makes a file as a guest's memory: of every three groups of 64 pages, in an order drawn by lot,
 * one is zero, one text and one random. Zero groups are written too, as a guest has written them.
 */
export function writeMixedMemory(path: string, { bytes, seed }: MixedSize): void {
  assert(bytes % GROUP_BYTES === 0, "memory is made of whole groups");
  const lot = new Prng(seed);
  const text = textOf({ bytes: Math.min(TEXT_BYTES, bytes), seed });
  const noise = createCipheriv("aes-128-ctr", keyOf(seed), new Uint8Array(16));
  const zeros = new Uint8Array(GROUP_BYTES);
  const texts = text.length / GROUP_BYTES;
  const fd = openSync(path, "wx");
  try {
    ftruncateSync(fd, bytes);
    let waiting: Kind[] = [];
    let textsUsed = 0;
    for (let at = 0; at < bytes; at += GROUP_BYTES) {
      if (waiting.length === 0) waiting = [...KINDS];
      const [kind] = waiting.splice(lot.below(waiting.length), 1);
      let source: Uint8Array = zeros;
      if (kind === "random") source = noise.update(zeros);
      if (kind === "text") {
        const first = (textsUsed % texts) * GROUP_BYTES;
        source = text.subarray(first, first + GROUP_BYTES);
        textsUsed += 1;
      }
      assert(writeSync(fd, source, 0, GROUP_BYTES, at) === GROUP_BYTES, "a group fits");
    }
  } finally {
    closeSync(fd);
  }
}

interface MixedSize {
  readonly bytes: number;
  readonly seed: number;
}

function keyOf(seed: number): Uint8Array {
  const key = new Uint8Array(16);
  new DataView(key.buffer).setUint32(0, seed);
  return key;
}
