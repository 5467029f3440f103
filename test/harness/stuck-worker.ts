/**
 * A channel's thread whose file blocks: it hangs in the kernel as it would in reading or writing a
 * disk that does not answer, until somebody writes to the pipe that it opens. No word reaches it
 * there, and `terminate` does not end it.
 */
import { openSync } from "node:fs";
import { workerData } from "piscina";
import type { ReceiveTask, SendTask } from "../../workers/protocol.ts";

export interface StuckSetup {
  /** The thread's real module. */
  readonly real: string;
  /** A named pipe without a writer. */
  readonly pipe: string;
  /** The task at which it hangs, once word 0 of `words` says so; it counts in word 1. */
  readonly task: (SendTask | ReceiveTask)["kind"];
  readonly words: Int32Array;
}

const { real, pipe, task: kind, words } = workerData.stuck as StuckSetup;
const { default: work } = (await import(real)) as { default: (task: object) => unknown };

export default function stuck(task: SendTask | ReceiveTask): unknown {
  if (task.kind === kind && Atomics.load(words, 0) === 1) {
    Atomics.add(words, 1, 1);
    Atomics.notify(words, 1);
    openSync(pipe, "r"); // The descriptor goes with the thread.
  }
  return work(task);
}
