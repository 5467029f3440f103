import type { Benchmark } from "./measure.ts";
import { throughput } from "./throughput.bench.ts";

/** Every benchmark there is, those with processes of their own first. */
export const BENCHMARKS: readonly Benchmark[] = [throughput];
