import { within } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { siblingModule } from "../base/module.ts";
import { type Control, createControl } from "../workers/control.ts";
import { wordCountFor } from "../workers/dirty-words.ts";
import { createFaultDoor, type FaultDoor } from "../workers/fault-door.ts";
import { createLaneWords } from "../workers/lane-words.ts";
import type { ChannelPlace, LaneSetup, ReceiveSetup, ReceiveTask } from "../workers/protocol.ts";
import { type Block, geometryOf } from "./block.ts";
import { channelFigures, sumCounters } from "./figures.ts";
import { Lanes } from "./lanes.ts";
import type { Parameters } from "./parameters.ts";
import type { ChannelFigures } from "./statistics.ts";
import type { Surroundings, ThreadPool } from "./surroundings.ts";

/** Threads start within half a second; on a machine that is busy with 64 of them, in several. */
const THREAD_START_MS = 30_000;

/** The destination's pages: a thread per channel writes them into guest memory until END. */
export class Receiver {
  readonly control: Control;
  readonly #channels: number;
  /** Where the guest may run before all its pages are there. */
  readonly door: FaultDoor | null;
  readonly #laneCount: number;
  readonly #lanes: Lanes;
  readonly #pool: ThreadPool;
  readonly #tasks: Promise<unknown>[] = [];

  /** Starts the threads. `blocks` are in the order of the agreement. */
  constructor(
    blocks: readonly Block[],
    { channels, lanes = 0 }: { channels: number; lanes?: number },
    parameters: Parameters,
    surroundings: Surroundings,
  ) {
    this.#channels = channels;
    this.#laneCount = lanes;
    this.control = createControl(channels + lanes);
    const geometries = blocks.map((block) => ({
      name: block.name,
      ...geometryOf(block, parameters.chunkBytes),
    }));
    this.door = lanes === 0 ? null : createFaultDoor(geometries);
    const setup: ReceiveSetup = {
      control: this.control,
      blocks: blocks.map((block) => {
        const { name, sizeBytes, place, pristine } = block;
        const { pageBytes, pageCount } = geometryOf(block, parameters.chunkBytes);
        const received = new Int32Array(new SharedArrayBuffer(wordCountFor(pageCount) * 4));
        const generations = new Uint32Array(new SharedArrayBuffer(pageCount * 4));
        return {
          name,
          sizeBytes,
          place,
          pageBytes,
          pageCount,
          isPristine: pristine === true,
          received,
          generations,
        };
      }),
      hasChecksum: parameters.checksum,
      channelTimeoutMs: parameters.channelTimeoutMs,
      ...(this.door === null ? {} : { door: this.door }),
    };
    const words = createLaneWords();
    this.#lanes = new Lanes(
      Array.from({ length: lanes }, (_, lane): LaneSetup => {
        return { side: "destination", receive: setup, words, lane, lanes };
      }),
    );
    const module = siblingModule("../workers/receive-worker", import.meta.url);
    this.#pool = surroundings.startThreads({ module, setup, channels });
  }

  /** Returns when every thread runs: what they load and compile takes no time from pages then. */
  async start(): Promise<void> {
    const task: ReceiveTask = { kind: "start" };
    const channels = Array.from({ length: this.#channels }, (_, index) => index + 1);
    const pooled = channels.map((channel) => this.#pool.run(channel, task));
    const started = Promise.all([...pooled, this.#lanes.start()]);
    const reason = `its thread did not start within ${THREAD_START_MS} ms`;
    const late = () => new MigrationError("WORKER_DIED", { channel: 1, reason });
    await within(THREAD_START_MS, started, late);
  }

  /** Receives one channel in the background; `onFailure` is told what went wrong there. */
  receive(place: ChannelPlace, onFailure: (error: unknown) => void): void {
    if (place.channel > this.#channels) {
      this.#lanes.serve(place.channel - this.#channels - 1, place, onFailure);
      return;
    }
    const task: ReceiveTask = { kind: "receive", place };
    const receiving = this.#pool.run(place.channel, task);
    receiving.catch(onFailure);
    this.#tasks.push(receiving);
  }

  /** Returns when every channel has ended, with all its pages in place. */
  async ended(): Promise<void> {
    await Promise.all(this.#tasks);
  }

  /** Returns when the priority channels have ended as well. */
  async allEnded(): Promise<void> {
    await Promise.all([this.ended(), this.#lanes.ended()]);
  }

  counters(): ReturnType<typeof sumCounters> {
    return sumCounters(this.control, this.#channels + this.#laneCount);
  }

  channelFigures(): ChannelFigures[] {
    return channelFigures(this.control, this.#channels, this.#laneCount);
  }

  /** False when a thread hangs and still holds its descriptors; see `ChannelPool.close`. */
  async close(): Promise<boolean> {
    const ends = await Promise.all([this.#pool.close(), this.#lanes.close()]);
    return ends.every((isGone) => isGone);
  }
}
