import { assert, must } from "../../base/assert.ts";
import { type SharedBlock, wordsOf } from "./memory.ts";
import { BlockModel, type Region } from "./model.ts";
import type { GuestShape } from "./shape.ts";
import { Slices } from "./slices.ts";
import { sweepsOf, type VcpuState, writesOf } from "./sweep.ts";

/** One damaged page is a lead, a million are one and the same. */
const PROBLEMS_MAX = 10;

/** Whether a wire page of a block, by its name, has come. */
export type IsHere = (block: string, page: number) => boolean;

/**
 * Compares every byte of `memory` that is here with what the vCPUs' states say it must be. Returns a
 * sentence for each page that differs, a few at most, then how many more there are. Nobody may be
 * writing.
 */
export async function verifyMemory(
  shape: GuestShape,
  memory: readonly SharedBlock[],
  states: readonly VcpuState[],
  isHere: IsHere = () => true,
): Promise<string[]> {
  assert(memory.length === shape.blocks.length, "every block has memory");
  assert(states.length === shape.vcpus.length, "every vCPU has a state");
  const slices = new Slices();
  const problems: string[] = [];
  let damagedPages = 0;
  for (const [index, block] of memory.entries()) {
    const check = new BlockCheck(shape, { index, block, states });
    for (let tile = 0; tile < check.model.tileCount; tile += 1) {
      const problem = isHere(block.name, tile) ? check.problemAt(tile) : null;
      if (problem !== null) damagedPages += 1;
      if (problem !== null && damagedPages <= PROBLEMS_MAX) problems.push(problem);
      if (slices.areOver) await slices.rest();
    }
  }
  const more = damagedPages - problems.length;
  return more > 0 ? [...problems, `and ${more} more pages`] : problems;
}

class BlockCheck {
  readonly model: BlockModel;
  readonly #block: SharedBlock;
  readonly #words: Int32Array;
  readonly #expected: Int32Array;
  readonly #vcpus: readonly { sweeps: ReturnType<typeof sweepsOf>; state: VcpuState }[];
  #damagedPage = -1;

  constructor(
    shape: GuestShape,
    of: { index: number; block: SharedBlock; states: readonly VcpuState[] },
  ) {
    this.model = new BlockModel(shape, of.index);
    this.#block = of.block;
    this.#words = wordsOf(of.block);
    this.#expected = new Int32Array(this.model.tileWords);
    this.#vcpus = shape.vcpus.map((vcpu, index) => ({
      sweeps: sweepsOf(vcpu),
      state: must(of.states[index], "every vCPU has a state"),
    }));
  }

  /** What is wrong with a tile, or null: also when its page was named before. */
  problemAt(tile: number): string | null {
    const { tileWords } = this.model;
    const page = this.model.pageOf(tile);
    if (page === this.#damagedPage) return null;
    const region = this.model.regionOf(page);
    const writes = region === null ? 0 : this.#writesOf(region, page);
    this.model.paint(this.#expected, 0, { tile, writes });
    const different = firstDifference(this.#words, tile * tileWords, this.#expected);
    if (different < 0) return null;
    this.#damagedPage = page;
    const sentence =
      (region === null ? null : this.#counterProblem(page, writes)) ??
      this.#byteProblem(tile * tileWords + different, this.#expected[different] as number, page);
    return `block "${this.#block.name}" page ${page} ${sentence}`;
  }

  #writesOf(region: Region, page: number): number {
    const { sweeps, state } = must(this.#vcpus[region.vcpu], "a region has its vCPU");
    return writesOf(sweeps, state, page);
  }

  #counterProblem(page: number, wanted: number): string | null {
    const pageWords = this.#block.pageBytes / 4;
    const start = (this.#words[page * pageWords] as number) >>> 0;
    const end = (this.#words[(page + 1) * pageWords - 1] as number) >>> 0;
    if (start !== end) return `is torn: it begins with write ${start} and ends with write ${end}`;
    if (start === wanted) return null;
    const isOlder = ((start - wanted) | 0) < 0;
    return `is ${isOlder ? "lost" : "ahead"}: it holds write ${start}, wanted ${wanted}`;
  }

  #byteProblem(word: number, wanted: number, page: number): string {
    const found = this.#words[word] as number;
    const byteInWord = Math.floor(Math.clz32(littleEnd(found ^ wanted)) / 8);
    const byte = word * 4 + byteInWord - page * this.#block.pageBytes;
    const [is, want] = [found, wanted].map((value) => byteOf(value, byteInWord));
    return `is corrupt: byte ${byte} is ${is}, wanted ${want}`;
  }
}

function firstDifference(words: Int32Array, at: number, expected: Int32Array): number {
  for (let i = 0; i < expected.length; i += 1) if (words[at + i] !== expected[i]) return i;
  return -1;
}

/** Swaps a word's bytes, so that the first byte in memory becomes the most significant. */
function littleEnd(word: number): number {
  return (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | ((word >>> 24) & 0xff);
}

function byteOf(word: number, index: number): string {
  return `0x${((word >>> (8 * index)) & 0xff).toString(16).padStart(2, "0")}`;
}
