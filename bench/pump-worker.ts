import { workerData } from "node:worker_threads";
import { type DescriptorOptions, readSome, writeAll } from "../channels/descriptor.ts";
import { type PumpThread, takePart } from "./pump-thread.ts";

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

const task = workerData as PumpTask;
const { bytes, pieceBytes, memoryBytes } = task;
const memory = new Uint8Array(task.memory, task.memoryAt, memoryBytes);
const answer = new Uint8Array(1);

if (task.direction === "out") takePart(task, send, awaitAnswer);
else takePart(task, receive);

function send(options: DescriptorOptions): void {
  for (let at = 0; at < bytes; at += pieceBytes) writeAll(options, pieceAt(at));
  awaitAnswer(options);
}

/** Whoever receives says that it is there, so that no clock of a sender counts how it starts. */
function receive(options: DescriptorOptions): void {
  writeAll(options, answer);
  for (let at = 0; at < bytes; at += pieceBytes) {
    const target = pieceAt(at);
    readSome(options, target, { least: target.length, isIdle: false });
  }
  writeAll(options, answer);
}

function awaitAnswer(options: DescriptorOptions): void {
  readSome(options, answer, { least: 1, isIdle: false });
}

/** The piece that is moved after `at` bytes. */
function pieceAt(at: number): Uint8Array {
  const from = at % memoryBytes;
  return memory.subarray(from, from + Math.min(pieceBytes, bytes - at));
}
