import { workerData } from "node:worker_threads";
import { nowMs } from "../base/clock.ts";
import { type DescriptorOptions, readSome, writeAll } from "../channels/descriptor.ts";

/** One thread of the pump: it moves bytes in or out of a descriptor and does nothing else. */
export interface PumpTask {
  readonly direction: "in" | "out";
  readonly fd: number;
  readonly channel: number;
  readonly bytes: number;
  readonly pieceBytes: number;
  readonly stop: Int32Array;
  /** Word 0: how many threads are ready; word 1: 1 when all may begin. */
  readonly start: Int32Array;
  /** When this thread began, when it was done, and the processor's milliseconds in between. */
  readonly times: Float64Array;
}

const LIMIT_MS = 30_000;

const { direction, fd, channel, bytes, pieceBytes, stop, start, times } = workerData as PumpTask;
const options: DescriptorOptions = { fd, channel, stop, limitMs: LIMIT_MS };
const piece = new Uint8Array(pieceBytes).fill(0xa5);
const answer = new Uint8Array(1);

Atomics.add(start, 0, 1);
Atomics.notify(start, 0);
Atomics.wait(start, 1, 0);
times[0] = nowMs();
const cpuBefore = process.threadCpuUsage();
if (direction === "out") {
  for (let left = bytes; left > 0; left -= piece.length) {
    writeAll(options, left < piece.length ? piece.subarray(0, left) : piece);
  }
  readSome(options, answer, { least: 1, isIdle: false });
} else {
  for (let left = bytes; left > 0; left -= piece.length) {
    const target = left < piece.length ? piece.subarray(0, left) : piece;
    readSome(options, target, { least: target.length, isIdle: false });
  }
  writeAll(options, answer);
}
const cpu = process.threadCpuUsage(cpuBefore);
times[1] = nowMs();
times[2] = (cpu.user + cpu.system) / 1000;
