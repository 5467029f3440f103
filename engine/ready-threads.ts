import { availableParallelism } from "node:os";
import { within } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { siblingModule } from "../base/module.ts";
import { CHANNELS_MAX } from "../channels/frame.ts";
import { endAll, PageThread, THREAD_START_MS } from "./page-thread.ts";

/**
 * Threads for migrations of this process, started ahead of them: a thread takes longer to start than a
 * small guest to move, and its code is compiled by and by. A migration takes as many as it has
 * channels, starts what is wanting, and gives back as many as there were in the beginning, for the next
 * one; those that it does not need stay. Several at once share what there is.
 */
export class ReadyThreads implements AsyncDisposable {
  readonly side: "source" | "destination";
  readonly #threads: PageThread[];
  readonly #countMax: number;
  readonly #ending: PageThread[] = [];
  #isClosed = false;

  /**
   * Starts `count` threads, each with the memory of a channel's, for migrations out or in. Throws
   * RangeError for more than a migration can have, or what is no number of threads.
   */
  constructor(side: "source" | "destination", count: number) {
    if (!Number.isInteger(count) || count < 0 || count > CHANNELS_MAX) {
      throw new RangeError(`Cannot make ${count} threads ready: 0 to ${CHANNELS_MAX} can be`);
    }
    if (side !== "source" && side !== "destination") {
      throw new RangeError(`Cannot make threads ready for "${side}": a source or a destination`);
    }
    this.side = side;
    const module = pageModule(side);
    this.#countMax = count;
    this.#threads = Array.from({ length: count }, () => new PageThread(module));
  }

  /** Returns when all of them have started; a migration need not wait for that. Throws WORKER_DIED. */
  async started(): Promise<void> {
    const started = this.#threads.map((thread) => thread.run(0, { kind: "ready" }));
    const late = (): Error => {
      const reason = `its thread did not start within ${THREAD_START_MS} ms`;
      return new MigrationError("WORKER_DIED", { channel: 0, reason });
    };
    await within(THREAD_START_MS, Promise.all(started), late);
  }

  /** How many there are, without those that a migration has. */
  get count(): number {
    return this.#threads.length;
  }

  /** One of them, for whoever takes it to end or to give back; null when there is none left. */
  take(): PageThread | null {
    return this.#threads.shift() ?? null;
  }

  /** Takes one back, or one in its place. False when there are enough, or when it is closed. */
  keep(thread: PageThread): boolean {
    if (this.#isClosed || this.#threads.length >= this.#countMax) return false;
    this.#threads.push(thread);
    return true;
  }

  /**
   * Ends those that no migration has, and has none of the others back: they end with their migration.
   * False when that takes longer than `limitMs`.
   */
  async close(limitMs?: number): Promise<boolean> {
    this.#isClosed = true;
    this.#ending.push(...this.#threads.splice(0));
    return await endAll(this.#ending, limitMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Of `count` threads, those that start sooner when they start now: a processor starts one at a time. */
export function atOnce(count: number): number {
  return Math.min(count, availableParallelism());
}

/** What the threads of one end run. */
export function pageModule(side: "source" | "destination"): URL {
  return side === "source"
    ? siblingModule("../workers/send-worker", import.meta.url)
    : siblingModule("../workers/receive-worker", import.meta.url);
}
