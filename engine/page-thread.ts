import { Piscina } from "piscina";
import { must } from "../base/assert.ts";
import { Deadline, settledWithin, within } from "../base/clock.ts";
import { MigrationError, reasonOf } from "../base/errors.ts";
import type { TaskDone, TaskReport } from "../workers/protocol.ts";

/** Threads start within half a second; on a machine that is busy with 64 of them, in several. */
const THREAD_START_MS = 30_000;

/** Threads look at the stop word every millisecond or so; what takes this long is stuck. */
export const THREAD_END_MS = 2000;

/**
 * A thread is terminated in the middle of its task after so long, and never sooner: however busy the
 * machine is, it has seen the stop word by then, unless it hangs. See `PageThread.end`.
 */
const THREAD_HANGS_MS = 8000;

/** Where threads go that have let go of their migration, for the next one. */
export interface ThreadHome {
  /** Else they are ended. */
  readonly hasRoom: boolean;
  keep(thread: PageThread): void;
}

/**
 * One thread that moves pages, for one migration: Piscina's pool, of one. Its tasks are done in order.
 * It knows nothing of a migration before its first task. In the end it is ended, or somebody keeps it:
 * then the same thread is another of these, and who still has this one can do nothing with it.
 */
export class PageThread {
  readonly #piscina: Piscina;
  /** Why it is gone. */
  #death: unknown = null;
  #ended: Promise<void> | null = null;
  /** The answers that are to come. */
  readonly #running = new Set<Promise<unknown>>();
  /** It has answered: from now on it may be at work. */
  #hasStarted = false;

  /** Starts a thread that runs a module, or goes on with one that has let go. */
  constructor(from: URL | PageThread) {
    if (from instanceof PageThread) {
      this.#piscina = from.#piscina;
      this.#hasStarted = true;
      return;
    }
    this.#piscina = new Piscina({
      filename: from.href,
      minThreads: 1,
      maxThreads: 1,
      idleTimeout: Number.POSITIVE_INFINITY,
      recordTiming: false,
      // Also when it is busy: what is in flight is bounded by who dispatches. It lives by its
      // descriptor and needs no event loop while idle: Piscina's default for `atomics` gives the
      // shortest hand-over.
      loadBalancer: (_task, [only]) => only ?? null,
    });
    this.#piscina.on("error", () => {}); // A dead thread shows as its task's rejection.
  }

  /** Whoever asks it for anything learns that it is gone. */
  get isDead(): boolean {
    return this.#death !== null;
  }

  /** Returns how the task ended. Throws WORKER_DIED when the thread is gone. */
  async run(channel: number, task: object): Promise<TaskReport> {
    try {
      if (this.#death !== null) throw this.#death;
      return await this.#answerTo(task);
    } catch (error) {
      // Piscina starts another one in its place, which knows nothing of this one's migration.
      this.#death ??= error;
      const facts = { channel, reason: reasonOf(error) };
      throw new MigrationError("WORKER_DIED", facts, { cause: error });
    }
  }

  /**
   * Settles when it has ended: after the tasks that it has, which somebody has told to stop, or after
   * `limitMs` in the middle of them. Where that hits a thread between making a stream of zlib and
   * setting it up, Node 24 aborts the whole process ("close before init"). One that is whole goes
   * `home` where there is room; either way it holds nothing of this migration then.
   */
  end(limitMs: number, home?: ThreadHome): Promise<void> {
    this.#ended ??= this.#end(limitMs, home);
    return this.#ended;
  }

  async #answerTo(task: object): Promise<TaskReport> {
    const answer = this.#piscina.run(task) as Promise<TaskReport>;
    this.#running.add(answer);
    try {
      return await answer;
    } finally {
      this.#hasStarted = true;
      this.#running.delete(answer);
    }
  }

  async #end(limitMs: number, home: ThreadHome | undefined): Promise<void> {
    if (this.#hasStarted) await this.#idle(limitMs);
    // Others may have come home while this one let go.
    if (home?.hasRoom && (await this.#letsGo(limitMs)) && home.hasRoom) this.#goHome(home);
    else await this.#destroy();
  }

  async #destroy(): Promise<void> {
    // For a task that came now, Piscina would start another thread, which nobody would end.
    this.#death ??= new Error("it was ended");
    await this.#piscina.destroy();
  }

  /** Returns when it has nothing more to do, or after `limitMs`: somebody may still give it tasks. */
  async #idle(limitMs: number): Promise<void> {
    const deadline = new Deadline(limitMs);
    while (this.#running.size > 0 && !deadline.passed) {
      await settledWithin(deadline.leftMs, this.#running);
    }
  }

  #goHome(home: ThreadHome): void {
    this.#death = new Error("it was given back");
    const again = new PageThread(this);
    home.keep(again);
    // Before whatever comes next, and nobody waits for it.
    again.run(0, { kind: "tidy" }).catch(() => {});
  }

  /** Whether it has let go of all that it had of its migration. */
  async #letsGo(limitMs: number): Promise<boolean> {
    if (!this.#hasStarted || this.#running.size > 0 || this.#death !== null) return false;
    const late = (): Error => new Error("it does not let go");
    try {
      await within(limitMs, this.#answerTo({ kind: "forget" }), late);
      return this.#death === null;
    } catch {
      return false;
    }
  }
}

/** What a task did, or null when it was stopped. Throws the failure that it met. */
export function doneOf(report: TaskReport): TaskDone | null {
  if (report.state === "failed") {
    const { code, facts, at } = must(report.failure, "a failed task says why");
    throw new MigrationError(code, facts, at === undefined ? {} : { at });
  }
  return report.state === "done" ? report : null;
}

/** Returns when threads have answered their first task. Throws WORKER_DIED, also when that takes too long. */
export async function allStarted(answers: Iterable<Promise<unknown>>, channel = 0): Promise<void> {
  const reason = `its thread did not start within ${THREAD_START_MS} ms`;
  const late = (): Error => new MigrationError("WORKER_DIED", { channel, reason });
  await within(THREAD_START_MS, Promise.all(answers), late);
}

/**
 * Ends threads, which must have been told to stop, or sends them `home`. Descriptors may be closed after
 * that, not before. A thread that takes longer than `limitMs`, such as one that hangs in the kernel (a
 * file on a disk that does not answer), is left behind: false. It ends when the kernel lets it go, or by
 * force when that takes very long; another call waits for that.
 */
export async function endAll(
  threads: readonly PageThread[],
  limitMs = THREAD_END_MS,
  home?: ThreadHome,
): Promise<boolean> {
  const hangsMs = Math.max(limitMs, THREAD_HANGS_MS);
  const ended = Promise.all(threads.map((thread) => thread.end(hangsMs, home)));
  try {
    await within(limitMs, ended, () => new Error("a thread hangs"));
    return true;
  } catch {
    return false;
  }
}
