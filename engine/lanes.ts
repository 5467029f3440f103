import { must } from "../base/assert.ts";
import { Stopped } from "../channels/descriptor.ts";
import type { ChannelPlace, LaneSetup, LaneTask } from "../workers/protocol.ts";
import { allStarted, doneOf, endAll, PageThread, type ThreadHome } from "./page-thread.ts";
import type { Parameters } from "./parameters.ts";
import { laneModule } from "./ready-threads.ts";
import type { ThreadStore } from "./thread-store.ts";
import { holdBack, v8Threads } from "./v8-threads.ts";

/** Priority channels of a migration with these parameters; none where post-copy cannot happen. */
export function laneCountOf({ postcopy, priorityChannels }: Parameters): number {
  return postcopy === "never" ? 0 : priorityChannels;
}

interface Lane {
  readonly thread: PageThread;
  readonly begun: Promise<unknown>;
  readonly ended: PromiseWithResolvers<void>;
}

/**
 * The threads of the priority lanes. Each serves its channel in one task, from its first byte to its
 * last: a page that a guest waits for passes no queue and no event loop.
 */
export class Lanes {
  readonly #lanes: readonly Lane[];
  readonly #home: ThreadHome | undefined;
  /** Looked for ahead: a guest that goes over waits for no more than it must. */
  readonly #v8Threads: readonly number[];
  #letV8Go: (() => void) | null = null;

  /** Starts the threads that are not `ready`. They rehearse, unless a guest waits for them already. */
  constructor(
    setups: readonly LaneSetup[],
    { isGuestThere, ready }: { isGuestThere: boolean; ready?: ThreadStore | undefined },
  ) {
    this.#home = ready;
    this.#v8Threads = setups.length === 0 ? [] : v8Threads();
    this.#lanes = setups.map((setup) => {
      const thread = ready?.take() ?? new PageThread(laneModule());
      const begun = thread.run(0, { kind: "begin", setup } satisfies LaneTask);
      // A thread that dies of it does not serve either.
      if (!isGuestThere) thread.run(0, { kind: "rehearse" } satisfies LaneTask).catch(() => {});
      const ended = Promise.withResolvers<void>();
      // Whoever waits gets it; there may be nobody.
      begun.catch(() => {});
      ended.promise.catch(() => {});
      return { thread, begun, ended };
    });
  }

  /** Returns when every thread runs and knows what it is for. Throws WORKER_DIED. */
  async start(): Promise<void> {
    await allStarted(this.#lanes.map((lane) => lane.begun));
  }

  /** Lane `index` serves this channel from now on. `onFailure` is told what goes wrong there. */
  serve(index: number, place: ChannelPlace, onFailure: (error: unknown) => void): void {
    const { thread, ended } = must(this.#lanes[index], "every priority channel has a lane");
    ended.promise.catch(onFailure);
    ended.resolve(serveOne(thread, place));
  }

  /** A guest waits for pages from now on: V8's own threads step behind until the lanes are closed. */
  comeFirst(): void {
    this.#letV8Go ??= holdBack(this.#v8Threads);
  }

  /** Returns when every lane has ended as it should. */
  async ended(): Promise<void> {
    await Promise.all(this.#lanes.map((lane) => lane.ended.promise));
  }

  /**
   * The stop word must be set. Threads that are whole go back to where the ready ones came from. False
   * when one hangs and still holds its descriptors; see `endAll`.
   */
  async close(limitMs?: number): Promise<boolean> {
    this.#letV8Go?.();
    const threads = this.#lanes.map((lane) => lane.thread);
    return await endAll(threads, limitMs, this.#home);
  }
}

async function serveOne(thread: PageThread, place: ChannelPlace): Promise<void> {
  const task: LaneTask = { kind: "serve", place };
  const done = doneOf(await thread.run(place.channel, task));
  if (done === null) throw new Stopped();
}
