import { existsSync } from "node:fs";
import type { Worker } from "node:worker_threads";
import { settledWithin } from "../base/clock.ts";

/** Threads end within milliseconds, on a busy machine within a second: what takes longer hangs. */
const PATIENCE_MS = 2000;

const SHELL = "/bin/sh";

/** Threads that this process has started and that have not ended. */
const threads = new Set<Worker>();
process.on("worker", (thread) => {
  threads.add(thread);
  thread.once("exit", () => threads.delete(thread));
});

/**
 * Ends this process with `status`. Node would first wait for every thread, and one that hangs in the
 * kernel, as on a disk that does not answer, does not end: `process.exit` would not return, and
 * nobody be told. To become another program ends all threads as a signal would, and that one has the
 * status as well.
 */
export async function leave(status: number): Promise<never> {
  const ended = [...threads].map((thread) => thread.terminate());
  await settledWithin(PATIENCE_MS, ended);
  if (threads.size > 0 && process.execve !== undefined && existsSync(SHELL)) {
    process.removeAllListeners("warning"); // That it is experimental is no news to a user.
    process.execve(SHELL, [SHELL, "-c", `exit ${status}`], {});
  }
  process.exit(status);
}
