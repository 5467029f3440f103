import { must } from "../../base/assert.ts";
import { wirePageBytes } from "../../engine/block.ts";
import { fillPage, kindOf } from "./content.ts";
import { type Rewrite, replayWrites, rewriteOf } from "./rewrite.ts";
import type { GuestShape } from "./shape.ts";

/** The pages of a block that one vCPU writes. */
export interface Region {
  /** The vCPU's number. */
  readonly vcpu: number;
  readonly firstPage: number;
  readonly pageCount: number;
  readonly rewrite: Rewrite;
}

/**
 * What one block must hold: a pure function of the shape, the page, and how often it was written.
 *
 * It speaks in *tiles*, which are wire pages: the mix of zero, text and noise then is what a
 * migration meets also where the guest's pages are huge, and a tile is small enough to compare.
 */
export class BlockModel {
  readonly tileWords: number;
  readonly tileCount: number;
  readonly #shape: GuestShape;
  readonly #block: number;
  readonly #tilesPerPage: number;
  readonly #regions: readonly Region[];

  constructor(shape: GuestShape, block: number) {
    const { name, sizeBytes, pageBytes } = must(shape.blocks[block], "a model is of a block");
    const tileBytes = wirePageBytes(pageBytes);
    this.tileWords = tileBytes / 4;
    this.tileCount = sizeBytes / tileBytes;
    this.#shape = shape;
    this.#block = block;
    this.#tilesPerPage = pageBytes / tileBytes;
    this.#regions = shape.vcpus.flatMap(({ block, firstPage, pageCount, changedBytes }, vcpu) =>
      block === name
        ? [{ vcpu, firstPage, pageCount, rewrite: rewriteOf(pageBytes, changedBytes) }]
        : [],
    );
  }

  pageOf(tile: number): number {
    return Math.floor(tile / this.#tilesPerPage);
  }

  /** The region that `page` lies in; null where no vCPU ever writes. */
  regionOf(page: number): Region | null {
    for (const region of this.#regions) {
      if (page >= region.firstPage && page < region.firstPage + region.pageCount) return region;
    }
    return null;
  }

  /** True when the tile holds only zeros before anybody writes it. */
  startsZero(tile: number): boolean {
    return kindOf(this.#shape, this.#block, tile) === "zero";
  }

  /** Writes the tile to `target` from word `at` on, as it is after `writes` writes to its page. */
  paint(target: Int32Array, at: number, { tile, writes }: { tile: number; writes: number }): void {
    const count = this.tileWords;
    fillPage(target, { at, count }, this.#shape, { block: this.#block, page: tile });
    const region = this.regionOf(this.pageOf(tile));
    if (region === null) return;
    const first = (tile % this.#tilesPerPage) * count;
    replayWrites(target, { at, first, count }, region.rewrite, writes);
  }
}
