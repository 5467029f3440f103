import { Worker } from "node:worker_threads";
import { assert } from "../../base/assert.ts";
import { Deadline, within } from "../../base/clock.ts";
import { reasonOf } from "../../base/errors.ts";
import { siblingModule } from "../../base/module.ts";
import { ADOPTED, type Control, type Orders, packOrders, unpackOrders, WANTED } from "./control.ts";
import type { VcpuJob, VcpuThreadData } from "./vcpu.ts";

/** A thread starts in 100 ms; a machine may be two hundred times as busy, but not busier. */
const START_LIMIT_MS = 20_000;

const STOPPED = "it was stopped";

/** The host's end of one vCPU's thread. */
export class VcpuThread {
  readonly #name: string;
  readonly #worker: Worker;
  readonly #exited: Promise<void>;
  readonly #ready: Promise<void>;
  #control: Control | null = null;
  #sequence = 0;
  /** Why it does not answer any more. The first reason stays. */
  #end: string | null = null;
  #hasExited = false;

  private constructor(name: string, workerData: VcpuThreadData) {
    const exited = Promise.withResolvers<void>();
    const ready = Promise.withResolvers<void>();
    this.#name = name;
    this.#exited = exited.promise;
    this.#ready = ready.promise;
    this.#worker = new Worker(siblingModule("vcpu", import.meta.url), { name, workerData });
    this.#worker.once("message", () => ready.resolve());
    this.#worker.on("error", (error) => this.#endFor(reasonOf(error)));
    this.#worker.on("exit", (code) => {
      this.#endFor(`its thread ended with code ${code}`);
      this.#hasExited = true;
      ready.resolve();
      exited.resolve();
    });
  }

  /** A blank thread, ready to become a vCPU. Nothing is left of it when this throws. */
  static async start(name: string, data: VcpuThreadData): Promise<VcpuThread> {
    const thread = new VcpuThread(name, data);
    try {
      const late = () => cannot("start", name, `it was not ready within ${START_LIMIT_MS} ms`);
      await within(START_LIMIT_MS, thread.#ready, late);
      if (thread.#end !== null) throw cannot("start", name, thread.#end);
      thread.#worker.unref();
      return thread;
    } catch (error) {
      await thread.stop();
      throw error;
    }
  }

  /** Why the thread is gone though nobody stopped it; null as long as all is well. */
  get death(): string | null {
    return this.#end === null || this.#end === STOPPED ? null : `${this.#name} died: ${this.#end}`;
  }

  get isAlive(): boolean {
    return !this.#hasExited;
  }

  /** Makes the blank thread a vCPU, which waits for its first orders. */
  assign(job: VcpuJob): void {
    assert(this.#control === null, "a thread becomes a vCPU once");
    this.#control = job.control;
    this.#worker.postMessage(job);
  }

  /**
   * Gives orders and returns when the vCPU follows them: an idle one does at once, a busy one after
   * its batch. Throws when it died or does not answer within `limitMs`.
   */
  async obey(orders: Orders, limitMs: number): Promise<void> {
    assert(this.#control !== null, "orders go to a vCPU");
    const { words } = this.#control;
    this.#sequence += 1;
    const wanted = packOrders(orders, this.#sequence);
    Atomics.store(words, WANTED, wanted);
    Atomics.notify(words, WANTED);
    // A running guest keeps its process alive, a paused one does not.
    if (orders.run) this.#worker.ref();
    else this.#worker.unref();
    const late = () => cannot("steer", this.#name, `it did not answer within ${limitMs} ms`);
    await within(limitMs, this.#adoption(words, wanted, limitMs), late);
  }

  /** True when it follows an order not to run: its state and its memory belong together. */
  get isStill(): boolean {
    if (this.#control === null) return true;
    const adopted = Atomics.load(this.#control.words, ADOPTED);
    return adopted === Atomics.load(this.#control.words, WANTED) && !unpackOrders(adopted).run;
  }

  /** Ends the thread, whatever it does, and returns when it is gone. Idempotent. */
  async stop(): Promise<void> {
    this.#endFor(STOPPED);
    await this.#worker.terminate();
    await this.#exited;
  }

  /** `Atomics.waitAsync` keeps no event loop alive: the caller's timer does. */
  async #adoption(words: Int32Array, wanted: number, limitMs: number): Promise<void> {
    const deadline = new Deadline(limitMs);
    while (!deadline.passed) {
      if (this.#end !== null) throw cannot("steer", this.#name, this.#end);
      const adopted = Atomics.load(words, ADOPTED);
      if (adopted === wanted) return;
      const waiting = Atomics.waitAsync(words, ADOPTED, adopted, Math.max(1, deadline.leftMs));
      if (waiting.async) await waiting.value;
    }
  }

  #endFor(reason: string): void {
    this.#end ??= reason;
    // Whoever waits for an answer looks again.
    if (this.#control !== null) Atomics.notify(this.#control.words, ADOPTED);
  }
}

/** `count` blank threads, started side by side. When one fails none is left. */
export async function startVcpuThreads(count: number, data: VcpuThreadData): Promise<VcpuThread[]> {
  const starts = Array.from({ length: count }, (_, index) => {
    return VcpuThread.start(`vcpu-${index}`, data);
  });
  const outcomes = await Promise.allSettled(starts);
  const threads = outcomes.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const failed = outcomes.find((one) => one.status === "rejected");
  if (failed === undefined) return threads;
  await stopVcpuThreads(threads);
  throw failed.reason;
}

export async function stopVcpuThreads(threads: readonly VcpuThread[]): Promise<void> {
  await Promise.all(threads.map((thread) => thread.stop()));
}

function cannot(action: string, name: string, reason: string): Error {
  return new Error(`Cannot ${action} ${name}: ${reason}`);
}
