import { assert, must } from "../../base/assert.ts";
import type { VcpuShape } from "./shape.ts";

/**
 * One round trip of a vCPU through pages of its region, each visited once, in a fixed order. Before
 * its position every page has been written once more often than after it.
 */
export interface Sweep {
  readonly firstPage: number;
  readonly pageCount: number;
  /** Coprime to `pageCount`: the visit at position p is to page p * stride modulo the count. */
  readonly stride: number;
  /** The stride's inverse: the position of page q is q * inverse modulo the count. */
  readonly inverse: number;
}

/** Where a vCPU stands in one sweep. */
export interface SweepState {
  /** Visits made in this round, 0 to `pageCount - 1`. */
  readonly position: number;
  /** Rounds finished, modulo 2^32. */
  readonly round: number;
}

/** Where a vCPU stands: nothing else is in its registers. */
export interface VcpuState {
  /** The sweep that makes the next visit; they take turns. */
  readonly turn: number;
  readonly sweeps: readonly SweepState[];
}

/** The hot tenth and the rest take turns, so nine sweeps of one go with one of the other. */
const HOT_SHARE = 10;

/** Neighbouring positions land far apart and everywhere; any other fraction would do as well. */
const GOLDEN_RATIO = 0.618;

export function sweepsOf({ firstPage, pageCount, pattern }: VcpuShape): readonly Sweep[] {
  if (pattern === "sweep") return [sweepOver(firstPage, pageCount, 1)];
  if (pattern === "stride") return [sweepOver(firstPage, pageCount, strideFor(pageCount))];
  const hotCount = Math.max(1, Math.round(pageCount / HOT_SHARE));
  assert(hotCount < pageCount, "a hot region has a rest");
  return [
    sweepOver(firstPage, hotCount, 1),
    sweepOver(firstPage + hotCount, pageCount - hotCount, 1),
  ];
}

/** A vCPU that has not written anything. */
export function firstState(sweeps: readonly Sweep[]): VcpuState {
  return { turn: 0, sweeps: sweeps.map(() => ({ position: 0, round: 0 })) };
}

export function pageAt(sweep: Sweep, position: number): number {
  return sweep.firstPage + ((position * sweep.stride) % sweep.pageCount);
}

/** How often `page` has been written, modulo 2^32, when its vCPU stands at `state`. */
export function writesOf(sweeps: readonly Sweep[], state: VcpuState, page: number): number {
  const index = sweeps.findIndex(
    ({ firstPage, pageCount }) => page >= firstPage && page < firstPage + pageCount,
  );
  const sweep = must(sweeps[index], "a page of a region lies in one of its sweeps");
  const { position, round } = must(state.sweeps[index], "a state covers every sweep");
  const visit = ((page - sweep.firstPage) * sweep.inverse) % sweep.pageCount;
  return (visit < position ? round + 1 : round) >>> 0;
}

function sweepOver(firstPage: number, pageCount: number, stride: number): Sweep {
  return { firstPage, pageCount, stride, inverse: inverseOf(stride, pageCount) };
}

function strideFor(pageCount: number): number {
  let stride = Math.max(1, Math.floor(pageCount * GOLDEN_RATIO));
  while (greatestDivisor(stride, pageCount) !== 1) stride += 1;
  return stride;
}

function greatestDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestDivisor(b, a % b);
}

/** The x with `stride * x % count === 1 % count`, by the extended algorithm of Euclid. */
function inverseOf(stride: number, count: number): number {
  let [r, before] = [stride, count];
  let [x, xBefore] = [1, 0];
  while (r > 1) {
    const quotient = Math.floor(before / r);
    [r, before] = [before - quotient * r, r];
    [x, xBefore] = [xBefore - quotient * x, x];
  }
  const inverse = ((x % count) + count) % count;
  assert((stride * inverse) % count === 1 % count, "a stride coprime to the count has an inverse");
  return inverse;
}
