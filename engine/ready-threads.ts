import { siblingModule } from "../base/module.ts";
import { endAll, PageThread } from "./page-thread.ts";

/**
 * Threads for the next migration of this process, started ahead of it: a thread takes longer to
 * start than a small guest to move. A migration takes as many as it has channels, starts what is
 * wanting, and ends all of them; those that it does not need stay.
 */
export class ReadyThreads implements AsyncDisposable {
  readonly side: "source" | "destination";
  readonly #threads: PageThread[];
  readonly #ending: PageThread[] = [];

  /** Starts `count` threads, each with some 15 MiB of memory, for migrations out or in. */
  constructor(side: "source" | "destination", count: number) {
    this.side = side;
    const module = pageModule(side);
    this.#threads = Array.from({ length: count }, () => new PageThread(module));
  }

  /** How many there are. */
  get count(): number {
    return this.#threads.length;
  }

  /** One of them, for whoever takes it to end; null when there is none left. */
  take(): PageThread | null {
    return this.#threads.shift() ?? null;
  }

  /** Ends those that nobody took. False when that takes longer than `limitMs`. */
  async close(limitMs?: number): Promise<boolean> {
    this.#ending.push(...this.#threads.splice(0));
    return await endAll(this.#ending, limitMs);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** What the threads of one end run. */
export function pageModule(side: "source" | "destination"): URL {
  return side === "source"
    ? siblingModule("../workers/send-worker", import.meta.url)
    : siblingModule("../workers/receive-worker", import.meta.url);
}
