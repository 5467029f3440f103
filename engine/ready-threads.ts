import { availableParallelism } from "node:os";
import { siblingModule } from "../base/module.ts";
import { CHANNELS_MAX } from "../channels/frame.ts";
import { PRIORITY_CHANNELS_MAX } from "../channels/messages.ts";
import { rehearsed } from "../workers/rehearsed.ts";
import { ThreadStore } from "./thread-store.ts";

/**
 * Threads for migrations of this process, started ahead of them: a thread takes longer to start than a
 * small guest to move, and its code is compiled by and by. Until one is wanted they rehearse, those of lanes
 * until their guest goes over. A migration takes as many as it has channels, starts what is wanting, and gives
 * back as many as there were in the beginning, for the next one; those that it does not need stay. Several at
 * once share what there is.
 */
export class ReadyThreads implements AsyncDisposable {
  readonly side: "source" | "destination";
  /** For the engine: those of the bulk channels, and of the priority channels. */
  readonly pages: ThreadStore;
  readonly lanes: ThreadStore;
  readonly #rehearsed: Promise<void>;
  /** The coordinator's, once it has begun: nothing of it outlives `close`. */
  #rehearsal: Promise<void> | null = null;

  /**
   * Starts `count` threads, each with the memory of a channel's, for migrations out or in, and `lanes`
   * for the priority channels of those that may come to post-copy. With `isForOne` none comes back: a
   * process that ends after its migration need not tidy them up. Throws RangeError for more than a
   * migration can have, or what is no number of threads.
   */
  constructor(
    side: "source" | "destination",
    count: number,
    { lanes = 0, isForOne = false }: { readonly lanes?: number; readonly isForOne?: boolean } = {},
  ) {
    checkCount(count, CHANNELS_MAX, "threads");
    checkCount(lanes, PRIORITY_CHANNELS_MAX, "lanes");
    if (side !== "source" && side !== "destination") {
      throw new RangeError(`Cannot make threads ready for "${side}": a source or a destination`);
    }
    this.side = side;
    this.pages = new ThreadStore(pageModule(side), { count, isForOne });
    this.lanes = new ThreadStore(laneModule(), { count: lanes, isForOne });
    this.#rehearsed = count === 0 ? Promise.resolve() : rehearsed(this.#rehearse());
  }

  /**
   * Returns when all of them have started and rehearsed; a migration need not wait for that. Throws
   * WORKER_DIED.
   */
  async started(): Promise<void> {
    await Promise.all([this.pages.started(), this.lanes.started(), this.#rehearsed]);
  }

  /** Of what the calling thread does in a migration, once the others know their part. */
  async #rehearse(): Promise<void> {
    await this.pages.started();
    const { wanted } = this.pages;
    if (wanted.aborted) return;
    // It plays all of a migration, which knows ready threads.
    const { rehearseCoordinator } = await import("./coordinator-rehearsal.ts");
    this.#rehearsal = rehearsed(rehearseCoordinator(wanted));
    await this.#rehearsal;
  }

  /** How many there are for bulk channels, without those that a migration has. */
  get count(): number {
    return this.pages.count;
  }

  /**
   * Ends those that no migration has, and has none of the others back: they end with their migration.
   * False when that takes longer than `limitMs`.
   */
  async close(limitMs?: number): Promise<boolean> {
    const ends = await Promise.all([this.pages.close(limitMs), this.lanes.close(limitMs)]);
    await this.#rehearsal;
    return !ends.includes(false);
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

/** What the threads of priority lanes run, at either end. */
export function laneModule(): URL {
  return siblingModule("../workers/lane-worker", import.meta.url);
}

function checkCount(count: number, max: number, what: string): void {
  if (Number.isInteger(count) && count >= 0 && count <= max) return;
  throw new RangeError(`Cannot make ${count} ${what} ready: 0 to ${max} can be`);
}
