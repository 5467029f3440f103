import type { Worker } from "node:worker_threads";

/**
 * Sees every thread that this process starts, as the process itself is told of them, so that a test
 * can end one from outside: as suddenly as the system would, without a hook in the engine.
 */
export class ThreadWatch implements Disposable {
  readonly threads: Worker[] = [];
  readonly #see = (thread: Worker): void => void this.threads.push(thread);

  constructor() {
    process.on("worker", this.#see);
  }

  /** All threads so far: Node tells of a thread a moment after it was made. */
  async all(): Promise<readonly Worker[]> {
    await new Promise((resolve) => setImmediate(resolve));
    return [...this.threads];
  }

  [Symbol.dispose](): void {
    process.off("worker", this.#see);
  }
}
