import type { LatencyFigures } from "../channels/messages.ts";

/**
 * How long things took, counted in logarithmic buckets of shared memory: any thread notes, any thread
 * reads, and nobody waits. Eight buckets for each doubling from a microsecond on, so that a figure is
 * within 9 %, up to an hour.
 */
export type Latencies = Int32Array;

const BUCKETS_PER_DOUBLING = 8;
const BUCKETS = 256;

export function createLatencies(): Latencies {
  return new Int32Array(new SharedArrayBuffer(BUCKETS * 4));
}

export function noteLatency(latencies: Latencies, ms: number): void {
  const us = Math.max(1, ms * 1000);
  const bucket = Math.min(BUCKETS - 1, Math.floor(Math.log2(us) * BUCKETS_PER_DOUBLING));
  Atomics.add(latencies, bucket, 1);
}

/** Each figure is the upper end of its bucket; all are 0 where nothing was noted. */
export function latencyFigures(latencies: Latencies): LatencyFigures {
  const counts = Array.from(latencies);
  const count = counts.reduce((sum, each) => sum + each, 0);
  const at = (share: number): number => {
    let left = Math.ceil(count * share);
    if (count === 0) return 0;
    for (const [bucket, each] of counts.entries()) {
      left -= each;
      if (left <= 0) return 2 ** ((bucket + 1) / BUCKETS_PER_DOUBLING);
    }
    return 0;
  };
  return {
    count,
    p50Us: at(0.5),
    p90Us: at(0.9),
    p99Us: at(0.99),
    p999Us: at(0.999),
    maxUs: at(1),
  };
}
