import { within } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { endAll, PageThread, THREAD_START_MS } from "./page-thread.ts";

/** Threads that all run the same, for whoever needs some next. */
export class ThreadStore {
  readonly #threads: PageThread[];
  readonly #countMax: number;
  readonly #ending: PageThread[] = [];
  #isClosed = false;

  /** Starts `count` threads. Where they are for one who takes them, none comes back. */
  constructor(module: URL, { count, isForOne }: { count: number; isForOne: boolean }) {
    this.#countMax = isForOne ? 0 : count;
    this.#threads = Array.from({ length: count }, () => new PageThread(module));
  }

  /** Returns when all that are here have started. Throws WORKER_DIED. */
  async started(): Promise<void> {
    const started = this.#threads.map((thread) => thread.run(0, { kind: "ready" }));
    const late = (): Error => {
      const reason = `its thread did not start within ${THREAD_START_MS} ms`;
      return new MigrationError("WORKER_DIED", { channel: 0, reason });
    };
    await within(THREAD_START_MS, Promise.all(started), late);
  }

  /** How many there are, without those that were taken. */
  get count(): number {
    return this.#threads.length;
  }

  /** One of them, for whoever takes it to end or to give back; null when there is none left. */
  take(): PageThread | null {
    for (let thread = this.#threads.shift(); thread !== undefined; thread = this.#threads.shift()) {
      if (!thread.isDead) return thread;
      this.#ending.push(thread);
      void thread.end(0);
    }
    return null;
  }

  /** Takes one back, or one in its place. False when there are enough, or when it is closed. */
  keep(thread: PageThread): boolean {
    if (this.#isClosed || this.#threads.length >= this.#countMax) return false;
    this.#threads.push(thread);
    return true;
  }

  /**
   * Ends those that are here, and has none of the others back. False when that takes longer than
   * `limitMs`.
   */
  async close(limitMs?: number): Promise<boolean> {
    this.#isClosed = true;
    this.#ending.push(...this.#threads.splice(0));
    return await endAll(this.#ending, limitMs);
  }
}
