import { assert } from "../../base/assert.ts";
import type { ContentMix, GuestShape } from "./shape.ts";

export type ContentKind = keyof ContentMix;

/** What a page of block number `block` holds before anybody writes it. */
export function kindOf(shape: GuestShape, block: number, page: number): ContentKind {
  const share = pageSeed(shape.seed, block, page) / 2 ** 32;
  if (share < shape.content.zero) return "zero";
  return share < 1 - shape.content.random ? "text" : "random";
}

/** Writes that page to `target`: `count` words, an even number, from `at` on. */
export function fillPage(
  target: Int32Array,
  { at, count }: { at: number; count: number },
  shape: GuestShape,
  { block, page }: { block: number; page: number },
): void {
  const kind = kindOf(shape, block, page);
  if (kind === "zero") target.fill(0, at, at + count);
  else if (kind === "text") fillText(target, at, count, pageSeed(~shape.seed, block, page));
  else fillRandom(target, at, count, pageSeed(~shape.seed, block, page));
}

/**
 * Marsaglia's xorshift generator twice, side by side: what one waits for, the other computes. That
 * is 4 GB/s instead of 2.2.
 */
function fillRandom(target: Int32Array, at: number, count: number, seed: number): void {
  assert(count % 2 === 0, "two generators fill pairs of words");
  let a = seed | 1;
  let b = ~seed | 2;
  for (let i = at; i < at + count; i += 2) {
    a ^= a << 13;
    a ^= a >>> 17;
    a ^= a << 5;
    target[i] = a;
    b ^= b << 13;
    b ^= b >>> 17;
    b ^= b << 5;
    target[i + 1] = b;
  }
}

/** Pieces of four letters, some far more often than others, as words in a language are. */
function fillText(target: Int32Array, at: number, count: number, seed: number): void {
  let a = seed | 1;
  for (let i = at; i < at + count; i += 1) {
    a ^= a << 13;
    a ^= a >>> 17;
    a ^= a << 5;
    target[i] = PIECES[(a >>> 24) & (a >>> 16) & (PIECE_COUNT - 1)] as number;
  }
}

const PIECE_COUNT = 128;

const PROSE =
  "A guest is a machine that does not know where it runs. Its memory is an array of pages, " +
  "and its clock is what the host says. To move it, copy the pages while it goes on writing, " +
  "copy again what it wrote, and again, until what is left is so little that a pause is not " +
  "noticed. Then stop it here, send the rest with the state of its devices, and start it " +
  "there. If anything fails on the way it runs on as though nothing had been tried; if " +
  "nothing fails, nobody can tell that it moved, least of all the guest, which is the whole " +
  "art of it and all its worth.";

const PIECES = piecesOf(PROSE);

function piecesOf(prose: string): Int32Array {
  const bytes = new TextEncoder().encode(prose).slice(0, PIECE_COUNT * 4);
  assert(bytes.length === PIECE_COUNT * 4, "the prose is long enough");
  return new Int32Array(bytes.buffer);
}

/** 32 bits that look drawn by lot, a pure function of where they are. */
function pageSeed(seed: number, block: number, page: number): number {
  return scramble(scramble(scramble(seed) ^ block) ^ page);
}

/** The finalizer of MurmurHash3 on a number that is not zero for zero. */
function scramble(value: number): number {
  let h = (value + 0x9e37_79b9) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85eb_ca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2_ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
