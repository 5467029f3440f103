import { workerData } from "node:worker_threads";
import { nowMs } from "../base/clock.ts";
import { type DescriptorOptions, readSome, writeAll } from "../channels/descriptor.ts";
import type { PumpThread } from "./pump.ts";

/** One thread of the pump: it moves bytes in or out of a descriptor and does nothing else. */
export interface PumpTask extends PumpThread {
  readonly direction: "in" | "out";
  readonly bytes: number;
  readonly pieceBytes: number;
  /** What it goes through, again and again: as many bytes of `memory`, from `memoryAt` on. */
  readonly memory: SharedArrayBuffer;
  readonly memoryAt: number;
  readonly memoryBytes: number;
}

const LIMIT_MS = 30_000;

const task = workerData as PumpTask;
const { direction, fd, channel, bytes, pieceBytes, stop, start, times } = task;
const { memoryAt, memoryBytes } = task;
const options: DescriptorOptions = { fd, channel, stop, limitMs: LIMIT_MS, isDeep: true };
const memory = new Uint8Array(task.memory, memoryAt, memoryBytes);
const answer = new Uint8Array(1);

Atomics.add(start, 0, 1);
Atomics.notify(start, 0);
Atomics.wait(start, 1, 0);
times[0] = nowMs();
const cpuBefore = process.threadCpuUsage();
if (direction === "out") {
  for (let at = 0; at < bytes; at += pieceBytes) writeAll(options, pieceAt(at));
  readSome(options, answer, { least: 1, isIdle: false });
} else {
  for (let at = 0; at < bytes; at += pieceBytes) {
    const target = pieceAt(at);
    readSome(options, target, { least: target.length, isIdle: false });
  }
  writeAll(options, answer);
}
const cpu = process.threadCpuUsage(cpuBefore);
times[1] = nowMs();
times[2] = (cpu.user + cpu.system) / 1000;

/** The piece that is moved after `at` bytes. */
function pieceAt(at: number): Uint8Array {
  const from = at % memoryBytes;
  return memory.subarray(from, from + Math.min(pieceBytes, bytes - at));
}
