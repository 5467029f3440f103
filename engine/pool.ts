import { Piscina } from "piscina";
import { must } from "../base/assert.ts";
import { within } from "../base/clock.ts";
import { MigrationError, reasonOf } from "../base/errors.ts";
import type { TaskDone, TaskReport } from "../workers/protocol.ts";

/** Threads look at the stop word every millisecond or so; what takes this long is stuck. */
const THREAD_END_MS = 5000;

/** What Piscina's balancer sees of a task: not the payload, only this. */
interface Owned {
  readonly channel: number;
}

/**
 * One thread per channel. Tasks of a channel always go to its thread, in order, also when it is
 * busy: a balancer that names nobody would hold up everyone's queue. What is in flight is bounded
 * by who dispatches.
 */
export class ChannelPool {
  readonly #piscina: Piscina;
  /** Channel to worker id; a channel gets a thread with its first task. */
  readonly #threads = new Map<number, number>();
  #ending: Promise<void> | null = null;

  constructor(options: { module: URL; setup: object; channels: number }) {
    this.#piscina = new Piscina({
      filename: options.module.href,
      workerData: options.setup,
      minThreads: options.channels,
      maxThreads: options.channels,
      idleTimeout: Number.POSITIVE_INFINITY,
      recordTiming: false,
      // A worker lives by its descriptor and needs no event loop while idle: Piscina's default for
      // `atomics` gives the shortest hand-over.
      loadBalancer: (task, workers) => {
        const { channel } = task[Piscina.queueOptionsSymbol as never] as Owned;
        const known = this.#threads.get(channel);
        if (known !== undefined) return workers.find((worker) => worker.id === known) ?? null;
        const taken = new Set(this.#threads.values());
        const free = workers.find((worker) => !taken.has(worker.id) && worker.currentUsage === 0);
        if (free === undefined) return null;
        this.#threads.set(channel, free.id);
        return free;
      },
    });
    this.#piscina.on("error", () => {}); // A dead thread shows as its task's rejection.
  }

  /**
   * Runs a task in the channel's thread. Returns what it did, or null when it was stopped meanwhile.
   * Throws the failure that it met, WORKER_DIED when the thread is gone.
   */
  async run(channel: number, task: object): Promise<TaskDone | null> {
    const owned: Owned = { channel };
    let report: TaskReport;
    try {
      const labelled = { ...task, [Piscina.queueOptionsSymbol]: owned };
      report = (await this.#piscina.run(labelled)) as TaskReport;
    } catch (error) {
      throw new MigrationError(
        "WORKER_DIED",
        { channel, reason: reasonOf(error) },
        { cause: error },
      );
    }
    if (report.state === "failed") {
      const { code, facts, at } = must(report.failure, "a failed task says why");
      throw new MigrationError(code, facts, at === undefined ? {} : { at });
    }
    return report.state === "done" ? report : null;
  }

  /**
   * Ends every thread. Descriptors may be closed after that, not before. A thread that hangs in the
   * kernel (a file on a disk that does not answer) is left behind after a while: false. Whoever must
   * know that it is gone asks again.
   */
  async close(): Promise<boolean> {
    try {
      this.#ending ??= this.#piscina.destroy();
      await within(THREAD_END_MS, this.#ending, () => new Error("a thread hangs"));
      return true;
    } catch {
      return false;
    }
  }
}
