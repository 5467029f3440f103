import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { nowMs } from "../../base/clock.ts";
import { type DescriptorOptions, readSome, writeAll } from "../../channels/descriptor.ts";
import type { PumpThread } from "../pump.ts";

/** One thread of a pump from file to file: it reads and sends, or receives and writes. */
export interface FilePumpTask extends PumpThread {
  readonly direction: "in" | "out";
  readonly path: string;
  /** Of each piece, where it begins and how long it is. */
  readonly pieces: Float64Array;
  /** Of the longest one. */
  readonly pieceBytes: number;
}

const LIMIT_MS = 30_000;

const task = workerData as FilePumpTask;
const { direction, path, pieces, fd, channel, stop, start, times } = task;
const options: DescriptorOptions = { fd, channel, stop, limitMs: LIMIT_MS, isDeep: true };
const buffer = new Uint8Array(task.pieceBytes);
const file = openSync(path, direction === "out" ? "r" : "r+");

Atomics.add(start, 0, 1);
Atomics.notify(start, 0);
Atomics.wait(start, 1, 0);
times[0] = nowMs();
const cpuBefore = process.threadCpuUsage();
for (let index = 0; index < pieces.length; index += 2) {
  const at = pieces[index] as number;
  const piece = buffer.subarray(0, pieces[index + 1]);
  if (direction === "out") {
    readSync(file, piece, 0, piece.length, at);
    writeAll(options, piece);
  } else {
    readSome(options, piece, { least: piece.length, isIdle: false });
    writeSync(file, piece, 0, piece.length, at);
  }
}
if (direction === "out") readSome(options, buffer, { least: 1, isIdle: false });
else writeAll(options, buffer.subarray(0, 1));
const cpu = process.threadCpuUsage(cpuBefore);
times[1] = nowMs();
times[2] = (cpu.user + cpu.system) / 1000;
closeSync(file);
