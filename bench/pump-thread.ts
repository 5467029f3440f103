import { nowMs } from "../base/clock.ts";
import type { DescriptorOptions } from "../channels/descriptor.ts";

/** What every thread of a pump is told. */
export interface PumpThread {
  readonly fd: number;
  readonly channel: number;
  readonly stop: Int32Array;
  /** Word 0: how many threads are ready; word 1: 1 when all may begin. */
  readonly start: Int32Array;
  /** When this thread began, when it was done, and the processor's milliseconds in between. */
  readonly times: Float64Array;
}

const LIMIT_MS = 30_000;

/**
 * Does this thread's part of a pump once all threads are there, and takes down what it took. Each
 * one is there when it has done what it has to `prepare`.
 */
export function takePart(
  { fd, channel, stop, start, times }: PumpThread,
  work: (options: DescriptorOptions) => void,
  prepare: (options: DescriptorOptions) => void = () => {},
): void {
  const options = { fd, channel, stop, limitMs: LIMIT_MS, isDeep: true };
  prepare(options);
  Atomics.add(start, 0, 1);
  Atomics.notify(start, 0);
  Atomics.wait(start, 1, 0);
  times[0] = nowMs();
  const cpuBefore = process.threadCpuUsage();
  work(options);
  const cpu = process.threadCpuUsage(cpuBefore);
  times[1] = nowMs();
  times[2] = (cpu.user + cpu.system) / 1000;
}
