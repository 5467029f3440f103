import { must } from "../base/assert.ts";
import type { TaskDone } from "../workers/protocol.ts";
import { doneOf, endAll, PageThread, type ThreadHome } from "./page-thread.ts";
import type { ThreadStore } from "./thread-store.ts";

/** One thread per channel. Tasks of a channel always go to its thread, in order. */
export class ChannelPool {
  readonly #threads: readonly PageThread[];
  readonly #home: ThreadHome | undefined;
  readonly #begun: Promise<unknown>;

  /** Starts the threads that are not `ready`, and gives each `setup`, before its first task. */
  constructor(options: {
    module: URL;
    setup: object;
    channels: number;
    ready?: ThreadStore | undefined;
  }) {
    const { module, setup, channels, ready } = options;
    this.#home = ready;
    this.#threads = Array.from({ length: channels }, () => {
      return ready?.take() ?? new PageThread(module);
    });
    const numbers = this.#threads.map((_, index) => index + 1);
    this.#begun = Promise.all(
      numbers.map((channel) => this.run(channel, { kind: "begin", setup })),
    );
    this.#begun.catch(() => {}); // The channel's next task meets it, too.
  }

  /** Returns when every thread runs and knows what it is for. Throws WORKER_DIED. */
  async begun(): Promise<void> {
    await this.#begun;
  }

  /**
   * Runs a task in the channel's thread. Returns what it did, or null when it was stopped meanwhile.
   * Throws the failure that it met, WORKER_DIED when the thread is gone.
   */
  async run(channel: number, task: object): Promise<TaskDone | null> {
    const thread = must(this.#threads[channel - 1], "a task is of a channel that has a thread");
    return doneOf(await thread.run(channel, task));
  }

  /**
   * Those that are whole go back to where the ready ones came from. False when a thread hangs and still
   * holds its descriptors; see `endAll`.
   */
  async close(limitMs?: number): Promise<boolean> {
    return await endAll(this.#threads, limitMs, this.#home);
  }
}
