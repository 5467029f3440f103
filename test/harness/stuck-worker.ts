/**
 * A channel's thread whose file blocks: it hangs in the kernel as it would in reading or writing a
 * disk that does not answer, until somebody writes to the pipe that it opens. No word reaches it
 * there, and `terminate` does not end it.
 */
import { openSync } from "node:fs";
import { must } from "../../base/assert.ts";
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

let real: Promise<{ readonly default: (task: object) => unknown }> | null = null;
let setup: StuckSetup | null = null;

export default async function stuck(task: SendTask | ReceiveTask): Promise<unknown> {
  if (task.kind === "begin") {
    setup = (task.setup as unknown as { readonly stuck: StuckSetup }).stuck;
    real = import(setup.real);
  }
  const { pipe, task: kind, words } = must(setup, "a thread begins with its setup");
  const { default: work } = await must(real, "a thread begins with its setup");
  if (task.kind === kind && Atomics.load(words, 0) === 1) {
    Atomics.add(words, 1, 1);
    Atomics.notify(words, 1);
    openSync(pipe, "r"); // The descriptor goes with the thread.
  }
  return work(task);
}
