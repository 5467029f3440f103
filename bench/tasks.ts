import { Bench } from "tinybench";
import { assert } from "../base/assert.ts";
import { type Goal, gbps, type Report, type Result } from "./measure.ts";

/** One thing that is done again and again. */
export interface Task {
  readonly name: string;
  /** Throws when the work was not really done. */
  work(): unknown;
  /** Restores what `work` changes; not timed. */
  prepare?(): void;
  /** In GB/s where `bytes` are given, else in microseconds. */
  readonly goal?: Goal;
  /** Told in bytes per second of this, instead of in time. */
  readonly bytes?: number;
  /** How often `work` does what `name` says, where once is too short for a clock. */
  readonly times?: number;
}

/** Times each task for so long and reports its median, which other work on the machine spares. */
export async function timeTasks(
  tasks: Iterable<Task>,
  timeMs: number,
  report: Report,
): Promise<void> {
  for (const task of tasks) {
    const bench = new Bench({ time: timeMs, warmupTime: timeMs / 2, throws: true });
    const { prepare } = task;
    bench.add(task.name, () => task.work(), prepare ? { beforeEach: () => prepare() } : {});
    const [timed] = await bench.run();
    assert(timed?.result.state === "completed", "a bench ran");
    const { p50, p99, samplesCount } = timed.result.latency;
    report(resultOf(task, { p50Ms: p50, p99Ms: p99, samples: samplesCount }));
  }
}

function resultOf(task: Task, figures: { p50Ms: number; p99Ms: number; samples: number }): Result {
  const { name, times = 1, bytes, goal } = task;
  const p50Ms = figures.p50Ms / times;
  const p99Ms = figures.p99Ms / times;
  const detail = `p99 ${formatUs(p99Ms)}, ${figures.samples} runs`;
  const common = { name, detail, ...(goal === undefined ? {} : { goal }) };
  if (bytes !== undefined) return { ...common, value: gbps(bytes, p50Ms), unit: "GB/s" };
  return { ...common, value: p50Ms * 1000, unit: "us" };
}

function formatUs(ms: number): string {
  return ms >= 1 ? `${ms.toFixed(2)} ms` : `${(ms * 1000).toFixed(2)} us`;
}
