import { reasonOf } from "../../base/errors.ts";
import { formatBytes } from "../../base/units.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import { BlockModel } from "./model.ts";
import type { GuestShape } from "./shape.ts";
import { Slices } from "./slices.ts";

/** A block of the embedded guest: in this process, where vCPU threads reach it. */
export interface SharedBlock extends Block {
  readonly place: { readonly kind: "shared"; readonly buffer: SharedArrayBuffer };
}

/** Zeroed memory; the system provides each page when it is first written. */
export function allocateBlock({ name, sizeBytes, pageBytes }: BlockAnnouncement): SharedBlock {
  try {
    const buffer = new SharedArrayBuffer(sizeBytes);
    return { name, sizeBytes, pageBytes, place: { kind: "shared", buffer } };
  } catch (error) {
    const wanted = `${formatBytes(sizeBytes)} for block "${name}"`;
    throw new RangeError(`Cannot allocate ${wanted}: ${reasonOf(error)}`, { cause: error });
  }
}

export function wordsOf(block: SharedBlock): Int32Array {
  return new Int32Array(block.place.buffer, 0, block.sizeBytes / 4);
}

/** Writes the content that a guest of this shape starts with. Zero pages are not touched. */
export async function fillMemory(shape: GuestShape, memory: readonly SharedBlock[]): Promise<void> {
  const slices = new Slices();
  for (const [index, block] of memory.entries()) {
    const words = wordsOf(block);
    const model = new BlockModel(shape, index);
    for (let tile = 0; tile < model.tileCount; tile += 1) {
      if (!model.startsZero(tile)) model.paint(words, tile * model.tileWords, { tile, writes: 0 });
      if (slices.areOver) await slices.rest();
    }
  }
}
