import { assert, must } from "../base/assert.ts";
import { after, Deadline, within } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { receiveBlockOf } from "../workers/blocks.ts";
import { type Control, createControl, reviveChannel, stopChannel } from "../workers/control.ts";
import { createFaultDoor, type FaultDoor } from "../workers/fault-door.ts";
import { closeLane, createLaneState } from "../workers/lane-state.ts";
import { createLaneWords, OPEN, tellLanes } from "../workers/lane-words.ts";
import type {
  ChannelPlace,
  LaneSetup,
  ReceiveBlock,
  ReceiveSetup,
  ReceiveTask,
} from "../workers/protocol.ts";
import { type Block, geometryOf } from "./block.ts";
import { channelFigures, sumCounters } from "./figures.ts";
import { isLoss } from "./loss.ts";
import { allStarted, THREAD_END_MS } from "./page-thread.ts";
import type { Parameters } from "./parameters.ts";
import { pageModule, type ReadyThreads } from "./ready-threads.ts";
import type { ChannelFigures } from "./statistics.ts";
import type { LaneThreads, Surroundings, ThreadPool } from "./surroundings.ts";

/** How often it is looked whether a vCPU still fetches a page: it stops within a millisecond. */
const FETCHING_LOOK_MS = 2;

/** The destination's pages: a thread per channel writes them into guest memory until END. */
export class Receiver {
  readonly control: Control;
  readonly #channels: number;
  /** Where the guest may run before all its pages are there. */
  readonly door: FaultDoor | null;
  readonly #laneCount: number;
  readonly #lanes: LaneThreads;
  readonly #pool: ThreadPool;
  /** By channel: settled when its thread has no more to do with its connection. */
  readonly #tasks = new Map<number, Promise<void>>();
  readonly #losses: number[];
  readonly #laneWords = createLaneWords();
  readonly #blocks: readonly ReceiveBlock[];

  /**
   * Starts the threads. `blocks` are in the order of the agreement. After another one broke off, whose
   * threads are gone, it goes on with what that has received.
   */
  constructor(
    blocks: readonly Block[],
    {
      channels,
      lanes = 0,
      ready,
    }: { channels: number; lanes?: number; ready?: ReadyThreads | undefined },
    parameters: Parameters,
    surroundings: Surroundings,
    before: Receiver | null = null,
  ) {
    this.#channels = channels;
    this.#losses = Array<number>(channels).fill(0);
    this.#laneCount = lanes;
    // Who waits for a page has closed the gate, and goes on waiting.
    this.control = createControl(channels + lanes, before?.control.gate);
    const geometries = blocks.map((block) => ({
      name: block.name,
      ...geometryOf(block, parameters.chunkBytes),
    }));
    this.#blocks = before?.blocksAgain() ?? receiveBlocks(blocks, parameters);
    const common = {
      blocks: this.#blocks,
      hasChecksum: parameters.checksum,
      channelTimeoutMs: parameters.channelTimeoutMs,
    };
    this.door =
      lanes === 0
        ? null
        : (before?.door ??
          createFaultDoor(geometries, this.control.gate, {
            states: Array.from({ length: lanes }, createLaneState),
            receive: { ...common, control: createControl(channels + lanes, this.control.gate) },
          }));
    const door = this.door === null ? {} : { door: this.door };
    const setup: ReceiveSetup = { control: this.control, ...common, ...door };
    const words = this.#laneWords;
    this.#lanes = surroundings.startLanes(
      Array.from({ length: lanes }, (_, lane): LaneSetup => {
        const state = must(this.door?.lanes?.states[lane], "a door has every lane");
        return { side: "destination", receive: setup, words, state, lane, lanes };
      }),
      { isGuestThere: before !== null, ready: ready?.lanes },
    );
    const module = pageModule("destination");
    this.#pool = surroundings.startThreads({ module, setup, channels, ready: ready?.pages });
  }

  /** Returns when every thread runs: what they load and compile takes no time from pages then. */
  async start(): Promise<void> {
    await allStarted([this.#pool.begun(), this.#lanes.start()], 1);
  }

  /**
   * Receives one channel in the background. `onLoss` is told when its connection is lost, which need
   * not be the end, and `onFailure` whatever else went wrong there.
   */
  receive(
    place: ChannelPlace,
    told: { onLoss(error: MigrationError): void; onFailure(error: unknown): void },
  ): void {
    const { channel } = place;
    assert(!this.#tasks.has(channel), "a channel has one connection at a time");
    if (channel > this.#channels) {
      // Nobody takes over from a lane: that it is lost ends the migration, as a failure does.
      this.#lanes.serve(channel - this.#channels - 1, place, told.onFailure);
      return;
    }
    const task: ReceiveTask = { kind: "receive", place };
    reviveChannel(this.control, channel);
    const receiving = this.#pool.run(channel, task).then(
      () => {},
      (error) => {
        if (!isLoss(error)) throw error;
        told.onLoss(error);
      },
    );
    receiving.catch(told.onFailure);
    this.#tasks.set(channel, receiving);
  }

  /**
   * Lets go of a channel: returns when its thread uses the connection no more, and writes nothing
   * more of it. Throws WORKER_DIED when it hangs for `limitMs`, on a disk say.
   */
  async letGo(channel: number, limitMs: number): Promise<void> {
    const receiving = this.#tasks.get(channel);
    if (receiving === undefined) return;
    this.#losses[channel - 1] = (this.#losses[channel - 1] ?? 0) + 1;
    stopChannel(this.control, channel);
    const reason = `its thread did not let go of a lost connection within ${limitMs} ms`;
    await within(limitMs, receiving, () => new MigrationError("WORKER_DIED", { channel, reason }));
    this.#tasks.delete(channel);
  }

  /**
   * Returns when every channel has ended, with all its pages in place. The source has fenced all of
   * them before it says so: a channel whose end does not come within `limitMs` has nothing to bring.
   */
  async ended(limitMs: number): Promise<void> {
    const all = Promise.all(this.#tasks.values());
    const late = new Error("an end is late");
    try {
      await within(limitMs, all, () => late);
    } catch (error) {
      if (error !== late) throw error;
      await Promise.all([...this.#tasks.keys()].map((channel) => this.letGo(channel, limitMs)));
    }
  }

  /** The lanes may ask for pages: the source is ready for that. */
  openLanes(): void {
    tellLanes(this.#laneWords, OPEN);
    this.#lanes.comeFirst();
  }

  /** Those with a connection that was not let go. */
  get workingChannels(): number {
    return this.#tasks.size;
  }

  get channels(): number {
    return this.#channels;
  }

  /** Returns when the source has said on every priority channel that all pages were applied. */
  async lanesEnded(): Promise<void> {
    await this.#lanes.ended();
  }

  counters(): ReturnType<typeof sumCounters> {
    return sumCounters(this.control, this.#channels + this.#laneCount);
  }

  channelFigures(): ChannelFigures[] {
    return channelFigures(this.control, this.#losses, this.#laneCount);
  }

  /** False when a thread hangs and still holds its descriptors; see `ChannelPool.close`. */
  async close(limitMs = THREAD_END_MS): Promise<boolean> {
    const ends = await Promise.all([
      this.#pool.close(limitMs),
      this.#lanes.close(limitMs),
      this.#areLanesClosed(limitMs),
    ]);
    return ends.every((isGone) => isGone);
  }

  /** For another one that goes on when all threads of this one are gone: what came is there. */
  private blocksAgain(): readonly ReceiveBlock[] {
    for (const { generations } of this.#blocks) generations.fill(0);
    return this.#blocks;
  }

  /** Returns when no vCPU fetches pages any more; false when one does for so long, on a disk say. */
  async #areLanesClosed(limitMs: number): Promise<boolean> {
    const { states, receive } = this.door?.lanes ?? { states: [], receive: null };
    for (let lane = 0; receive !== null && lane < states.length; lane += 1) {
      stopChannel(receive.control, this.#channels + lane + 1);
    }
    const deadline = new Deadline(limitMs);
    for (;;) {
      if (states.filter((state) => !closeLane(state)).length === 0) return true;
      if (deadline.passed) return false;
      await new Promise<void>((resolve) => {
        after(FETCHING_LOOK_MS, resolve);
      });
    }
  }
}

function receiveBlocks(blocks: readonly Block[], { chunkBytes }: Parameters): ReceiveBlock[] {
  return blocks.map((block) => {
    const { pageBytes, pageCount } = geometryOf(block, chunkBytes);
    return receiveBlockOf({ ...block, pageBytes, pageCount }, block.pristine === true);
  });
}
