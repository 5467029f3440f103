import { Worker } from "node:worker_threads";
import { must } from "../base/assert.ts";
import { settledWithin, within } from "../base/clock.ts";
import { MigrationError, reasonOf } from "../base/errors.ts";
import { siblingModule } from "../base/module.ts";
import { Stopped } from "../channels/descriptor.ts";
import type { ChannelPlace, LaneSetup, TaskReport } from "../workers/protocol.ts";
import type { Parameters } from "./parameters.ts";

const THREAD_START_MS = 30_000;
const THREAD_END_MS = 2000;

/** Priority channels of a migration with these parameters; none where post-copy cannot happen. */
export function laneCountOf({ postcopy, priorityChannels }: Parameters): number {
  return postcopy === "never" ? 0 : priorityChannels;
}

/**
 * The threads of the priority lanes. A thread of its own each, not of a pool: a page that a guest
 * waits for passes no queue and no event loop.
 */
export class Lanes {
  readonly #lanes: readonly Lane[];

  constructor(setups: readonly LaneSetup[]) {
    this.#lanes = setups.map((setup) => new Lane(setup));
  }

  async start(): Promise<void> {
    await Promise.all(this.#lanes.map((lane) => lane.ready()));
  }

  /** Lane `index` serves this channel from now on. `onFailure` is told what goes wrong there. */
  serve(index: number, place: ChannelPlace, onFailure: (error: unknown) => void): void {
    must(this.#lanes[index], "every priority channel has a lane").serve(place, onFailure);
  }

  /** Returns when every lane has ended as it should. */
  async ended(): Promise<void> {
    await Promise.all(this.#lanes.map((lane) => lane.ended));
  }

  /** False when a thread hangs and still holds its descriptors. The stop word must be set. */
  async close(limitMs = THREAD_END_MS): Promise<boolean> {
    const ends = Promise.all(this.#lanes.map((lane) => lane.close(limitMs)));
    try {
      await within(limitMs, ends, () => new Error("a thread hangs"));
      return true;
    } catch {
      return false;
    }
  }
}

class Lane {
  readonly #worker: Worker;
  readonly #ready = Promise.withResolvers<void>();
  readonly #ended = Promise.withResolvers<void>();
  #channel = 0;

  constructor(setup: LaneSetup) {
    this.#worker = new Worker(siblingModule("../workers/lane-worker", import.meta.url), {
      workerData: setup,
      name: "lane",
    });
    this.#worker.on("message", (said: "ready" | TaskReport) => {
      if (said === "ready") this.#ready.resolve();
      else this.#conclude(said);
    });
    this.#worker.on("error", (error) => this.#fail(this.#died(reasonOf(error))));
    this.#worker.on("exit", () => this.#fail(this.#died("its thread ended")));
    this.#worker.unref();
    // Whoever waits gets it; there may be nobody.
    this.#ready.promise.catch(() => {});
    this.#ended.promise.catch(() => {});
  }

  async ready(): Promise<void> {
    const late = () => this.#died(`its thread did not start within ${THREAD_START_MS} ms`);
    await within(THREAD_START_MS, this.#ready.promise, late);
  }

  serve(place: ChannelPlace, onFailure: (error: unknown) => void): void {
    this.#channel = place.channel;
    this.#ended.promise.catch(onFailure);
    this.#worker.postMessage(place);
  }

  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  /** As a thread of pages: not in the middle of its work, unless that takes longer than `limitMs`. */
  async close(limitMs: number): Promise<void> {
    if (this.#channel !== 0) await settledWithin(limitMs, [this.#ended.promise]);
    await this.#worker.terminate();
  }

  #conclude({ state, ...report }: TaskReport): void {
    if (state === "done") this.#ended.resolve();
    else if (state === "stopped") this.#fail(new Stopped());
    else {
      const { code, facts, at } = must("failure" in report ? report.failure : null, "it says why");
      this.#fail(new MigrationError(code, facts, at === undefined ? {} : { at }));
    }
  }

  #died(reason: string): MigrationError {
    return new MigrationError("WORKER_DIED", { channel: this.#channel, reason });
  }

  #fail(error: Error): void {
    this.#ready.reject(error);
    this.#ended.reject(error);
  }
}
