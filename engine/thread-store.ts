import { assert } from "../base/assert.ts";
import type { BetweenTask } from "../workers/protocol.ts";
import { allStarted, endAll, PageThread, type ThreadHome } from "./page-thread.ts";

/** Threads that all run the same, for whoever needs some next. */
export class ThreadStore implements ThreadHome {
  readonly #threads: PageThread[];
  readonly #countMax: number;
  readonly #ending: PageThread[] = [];
  /** For the threads: word 0 is 1 once somebody wants one. */
  readonly #wanted = new Int32Array(new SharedArrayBuffer(4));
  readonly #onWanted = new AbortController();
  readonly #started: Promise<void>;
  #isClosed = false;

  /** Starts `count` threads. Where they are for one who takes them, none comes back. */
  constructor(module: URL, { count, isForOne }: { count: number; isForOne: boolean }) {
    this.#countMax = isForOne ? 0 : count;
    this.#threads = Array.from({ length: count }, () => new PageThread(module));
    const ready: BetweenTask = { kind: "ready", wanted: this.#wanted };
    this.#started = allStarted(this.#threads.map((thread) => thread.run(0, ready)));
    this.#started.catch(() => {}); // Whoever takes one meets it, too.
  }

  /** Returns when all that were there have started and rehearsed. Throws WORKER_DIED. */
  async started(): Promise<void> {
    await this.#started;
  }

  /** Aborted once somebody wants one, or none any more: what is rehearsed meanwhile ends. */
  get wanted(): AbortSignal {
    return this.#onWanted.signal;
  }

  /** How many there are, without those that were taken. */
  get count(): number {
    return this.#threads.length;
  }

  /** One of them, for whoever takes it to end or to give back; null when there is none left. */
  take(): PageThread | null {
    this.#endRehearsals();
    for (let thread = this.#threads.shift(); thread !== undefined; thread = this.#threads.shift()) {
      if (!thread.isDead) return thread;
      this.#ending.push(thread);
      void thread.end(0);
    }
    return null;
  }

  /** Whether one may come back: there are fewer than there were, and it is not closed. */
  get hasRoom(): boolean {
    return !this.#isClosed && this.#threads.length < this.#countMax;
  }

  /** Takes one back, or one in its place. */
  keep(thread: PageThread): void {
    assert(this.hasRoom, "a thread comes back where there is room for it");
    this.#threads.push(thread);
  }

  /**
   * Ends those that are here, and has none of the others back. False when that takes longer than
   * `limitMs`.
   */
  async close(limitMs?: number): Promise<boolean> {
    this.#isClosed = true;
    this.#endRehearsals();
    this.#ending.push(...this.#threads.splice(0));
    return await endAll(this.#ending, limitMs);
  }

  #endRehearsals(): void {
    Atomics.store(this.#wanted, 0, 1);
    this.#onWanted.abort();
  }
}
