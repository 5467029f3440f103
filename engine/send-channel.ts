import { nowMs } from "../base/clock.ts";
import type { MigrationError } from "../base/errors.ts";
import { Stopped } from "../channels/descriptor.ts";
import { type Control, CounterRow, reviveChannel, stopChannel } from "../workers/control.ts";
import type { ChannelPlace, SendTask, TaskDone } from "../workers/protocol.ts";

import type { ThreadPool } from "./surroundings.ts";
import { type Batch, bytesOf, partOf } from "./work.ts";

/** One bulk channel at the source: its thread, and what is not known to have arrived. */
export class SendChannel {
  readonly number: number;
  readonly #pool: ThreadPool;
  readonly #control: Control;
  readonly #counters: CounterRow;
  /** Why it is lost, from when that is known until it has another connection. */
  #doom: MigrationError | null = null;
  /** Chunks that its thread had begun when the oldest task that runs was given to it. */
  #chunksBefore = 0;
  #fences = 0;
  /** Given to its thread and not answered, in order. After a failure, what it may not have sent. */
  readonly given = new Set<Batch>();
  /** What it sent since its last fence: lost with its connection. */
  readonly unfenced: Batch[] = [];
  losses = 0;

  constructor(number: number, pool: ThreadPool, control: Control) {
    this.number = number;
    this.#pool = pool;
    this.#control = control;
    this.#counters = new CounterRow(control, number - 1);
  }

  get doom(): MigrationError | null {
    return this.#doom;
  }

  /** From here on its tasks fail with `error`, also those that run. */
  lose(error: MigrationError): void {
    if (this.#doom !== null) return;
    this.#doom = error;
    this.losses += 1;
    stopChannel(this.#control, this.number);
  }

  /** Takes up a connection, the first one or another after one was lost. Returns the round trip. */
  async open(place: ChannelPlace): Promise<number> {
    this.given.clear();
    this.unfenced.length = 0;
    this.#chunksBefore = this.#counters.read("chunks");
    this.#doom = null;
    reviveChannel(this.#control, this.number);
    await this.run({ kind: "open", place });
    return await this.fence();
  }

  /** Throws what the task met, why the channel is lost, or Stopped when everything was stopped. */
  async run(task: SendTask): Promise<TaskDone> {
    if (this.#doom !== null) throw this.#doom;
    const done = await this.#pool.run(this.number, task);
    if (done === null) throw this.#doom ?? new Stopped();
    return done;
  }

  /** Sends a batch. Returns what of it the thread has left, for anybody to send. */
  async send(batch: Batch, task: SendTask): Promise<Batch> {
    this.given.add(batch);
    const { left = 0 } = await this.run(task);
    const begun = batch.chunks.length - left;
    this.#chunksBefore += begun;
    this.given.delete(batch);
    if (begun > 0) this.unfenced.push(partOf(batch, 0, begun));
    return partOf(batch, begun);
  }

  /** Bytes that its thread has written, ever. */
  get movedBytes(): number {
    return this.#counters.read("movedBytes");
  }

  /** Guest memory that its thread was given: what it has begun of that, and what not. */
  get progress(): { begunBytes: number; givenBytes: number } {
    let begun = this.#counters.read("chunks") - this.#chunksBefore;
    let begunBytes = 0;
    let givenBytes = 0;
    for (const batch of this.given) {
      const chunks = Math.min(begun, batch.chunks.length);
      begun -= chunks;
      begunBytes += bytesOf(partOf(batch, 0, chunks));
      givenBytes += bytesOf(partOf(batch, chunks));
    }
    return { begunBytes, givenBytes };
  }

  /** Returns, with the time it took, when the destination has applied all that the channel sent. */
  async fence(): Promise<number> {
    this.#fences += 1;
    const startMs = nowMs();
    await this.run({ kind: "fence", number: this.#fences });
    this.unfenced.length = 0;
    return nowMs() - startMs;
  }
}
