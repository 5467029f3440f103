import { assert, must } from "../base/assert.ts";

/**
 * What benchmarks measure and how it is judged.
 *
 * Goals: figures that travel (ratios of two things measured in the same run, shares, bytes per CPU
 * second), reproducible by one command, and code that does not rot, since the test suite runs
 * everything small. Not goals: thresholds in CI, a history of absolute figures, other machines.
 */
export interface Result {
  /** What was measured, unique in its benchmark. */
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  readonly goal?: Goal;
  /** How it came about: the single runs, what is counted and what is not. */
  readonly detail?: string;
}

export type Goal = { readonly atLeast: number } | { readonly atMost: number };

export type Report = (result: Result) => void;

/** Named numbers that make a run small or large; a command line may change them one by one. */
export type Parameters = Readonly<Record<string, number>>;

/** One benchmark: the same code runs small in the test suite and large for figures. */
export interface Benchmark<P extends Parameters = Parameters> {
  readonly name: string;
  readonly about: string;
  /** Which of the test suites runs it small; "real" has what only a machine with QEMU can do. */
  readonly suite?: "fast" | "real";
  readonly smoke: P;
  readonly real: P;
  /** Throws when the work that is measured was not really done. */
  run(report: Report, parameters: P): Promise<void>;
}

/** What is wanted cannot be measured on this machine, which is neither a figure nor a mistake. */
export class CannotMeasure extends Error {
  override name = "CannotMeasure";
}

export function isMet({ value, goal }: Result): boolean | null {
  if (goal === undefined) return null;
  return "atLeast" in goal ? value >= goal.atLeast : value <= goal.atMost;
}

/** The middle one: other work on the machine makes single runs slow, and then very slow. */
export function median(values: readonly number[]): number {
  assert(values.length > 0, "a median is of something");
  const sorted = values.toSorted((a, b) => a - b);
  const upper = must(sorted[Math.floor(sorted.length / 2)], "a middle exists");
  const lower = must(sorted[Math.ceil(sorted.length / 2) - 1], "a middle exists");
  return (lower + upper) / 2;
}

/** Decimal gigabytes per second, as memory and links are rated. */
export function gbps(bytes: number, ms: number): number {
  return bytes / ms / 1e6;
}

export function listed(values: readonly number[], digits = 2): string {
  return values.map((value) => value.toFixed(digits)).join(" ");
}
