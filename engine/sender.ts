import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { siblingModule } from "../base/module.ts";
import { Stopped } from "../channels/descriptor.ts";
import { type Control, createControl, setBandwidthLimit } from "../workers/control.ts";
import type { ChannelPlace, SendSetup, SendTask } from "../workers/protocol.ts";
import { type Block, type Geometry, geometryOf } from "./block.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";
import type { DirtyLog } from "./dirty-log.ts";
import { channelFigures, sumCounters } from "./figures.ts";
import type { Parameters } from "./parameters.ts";
import { ChannelPool } from "./pool.ts";
import { ownerOf } from "./shards.ts";
import type { ChannelFigures, RoundFigures } from "./statistics.ts";

/**
 * A task's worth of dirty pages: enough to make the hand-over to the thread cheap (some 20 us for
 * milliseconds of work), small enough that a cancel or a new round does not wait for long.
 */
const TASK_BYTES = 4 * 2 ** 20;
/** An almost clean guest: so many chunks with a page or two each go in one task. */
const TASK_CHUNKS_MAX = 256;
/** One task runs while the next one is on its way to the thread. */
const TASKS_IN_FLIGHT = 2;

/** What a round sent, and how long a channel was busy with sending it, on average. */
export interface SentRound extends RoundFigures {
  readonly sendMs: number;
  readonly guestBytes: number;
}

interface SentBlock extends Geometry {
  readonly block: Block;
  readonly bitmap: DirtyBitmap;
}

/** The source's pages: what is dirty, who sends it, and what was sent. */
export class Sender {
  readonly control: Control;
  readonly #blocks: readonly SentBlock[];
  readonly #channels: number;
  readonly #pool: ChannelPool;
  #fences = 0;
  #isHurried = false;

  /** Starts the threads. Everything is dirty. */
  constructor(blocks: readonly Block[], parameters: Parameters) {
    this.#channels = parameters.channels;
    this.control = createControl(parameters.channels);
    setBandwidthLimit(this.control, parameters.maxBandwidthBytesPerSecond);
    this.#blocks = blocks.map((block) => {
      const geometry = geometryOf(block, parameters.chunkBytes);
      const bitmap = new DirtyBitmap(geometry);
      bitmap.fill();
      return { block, bitmap, ...geometry };
    });
    const setup: SendSetup = {
      control: this.control,
      blocks: this.#blocks.map(({ block, bitmap, pageBytes, pageCount, pagesPerChunk }) => {
        const { name, sizeBytes, place } = block;
        return { name, sizeBytes, place, pageBytes, pageCount, pagesPerChunk, dirty: bitmap.words };
      }),
      hasChecksum: parameters.checksum,
      channelTimeoutMs: parameters.channelTimeoutMs,
      fenceTimeoutMs: parameters.stepTimeoutMs,
    };
    const module = siblingModule("../workers/send-worker", import.meta.url);
    this.#pool = new ChannelPool({ module, setup, channels: parameters.channels });
  }

  async open(place: ChannelPlace): Promise<void> {
    await this.#run(place.channel, { kind: "open", place });
  }

  /** Moves what the hosts' logs have into the bitmaps; returns the newly dirty wire pages. */
  sync(logs: readonly DirtyLog[]): number {
    let pages = 0;
    for (const { block, bitmap } of this.#blocks) {
      pages += bitmap.sync(logs.filter((log) => log.block === block.name));
    }
    return pages;
  }

  get dirtyPages(): number {
    return this.#blocks.reduce((sum, { bitmap }) => sum + bitmap.dirtyCount(), 0);
  }

  get dirtyBytes(): number {
    return this.#blocks.reduce(
      (sum, { bitmap }) => sum + bitmap.dirtyCount() * bitmap.pageBytes,
      0,
    );
  }

  /** Sends everything that is dirty, each chunk in the channel that owns it. */
  async sendRound(): Promise<SentRound> {
    const startMs = nowMs();
    const dirtyPages = this.dirtyPages;
    const guestBytes = this.dirtyBytes;
    const before = this.#totals();
    await this.#onAllChannels((channel) => this.#sendShard(channel));
    const after = this.#totals();
    return {
      dirtyPages,
      guestBytes,
      sentPages: after.pages - before.pages,
      sentBytes: after.movedBytes - before.movedBytes,
      sendMs: (after.sendMs - before.sendMs) / this.#channels,
      elapsedMs: Math.max(nowMs() - startMs, 0.001),
    };
  }

  /** Ends the round that runs, soon: what it has not sent stays dirty. */
  hurry(): void {
    this.#isHurried = true;
  }

  resumeRounds(): void {
    this.#isHurried = false;
  }

  /** Returns when the destination has applied everything sent so far, on every channel. */
  async fence(): Promise<void> {
    this.#fences += 1;
    const task: SendTask = { kind: "fence", number: this.#fences };
    await this.#onAllChannels((channel) => this.#run(channel, task));
  }

  async end(): Promise<void> {
    await this.#onAllChannels((channel) => this.#run(channel, { kind: "end" }));
  }

  get sentBytes(): number {
    return this.#totals().movedBytes;
  }

  channelFigures(): ChannelFigures[] {
    return channelFigures(this.control, this.#channels);
  }

  counters(): ReturnType<typeof sumCounters> {
    return this.#totals();
  }

  /** False when a thread hangs and still holds its descriptors; see `ChannelPool.close`. */
  async close(): Promise<boolean> {
    return await this.#pool.close();
  }

  /** Walks a channel's chunks, in order, and keeps its thread busy. */
  async #sendShard(channel: number): Promise<void> {
    const inFlight = new Set<Promise<unknown>>();
    for (const task of this.#tasksOf(channel)) {
      if (this.#isHurried) break;
      const running = this.#run(channel, task).finally(() => inFlight.delete(running));
      inFlight.add(running);
      // Someone must always look at a rejection, also when another task is awaited.
      running.catch(() => {});
      if (inFlight.size >= TASKS_IN_FLIGHT) await Promise.race(inFlight);
    }
    await Promise.all(inFlight);
  }

  *#tasksOf(channel: number): Generator<SendTask> {
    for (const [index, { bitmap, pageBytes }] of this.#blocks.entries()) {
      let chunks: number[] = [];
      let bytes = 0;
      for (let chunk = bitmap.nextDirtyChunk(0); chunk !== -1; ) {
        if (ownerOf(chunk, this.#channels) === channel) {
          chunks.push(chunk);
          bytes += bitmap.dirtyCountOf(chunk) * pageBytes;
          if (bytes >= TASK_BYTES || chunks.length >= TASK_CHUNKS_MAX) {
            yield { kind: "send", block: index, chunks };
            chunks = [];
            bytes = 0;
          }
        }
        const next = chunk + 1;
        chunk = next < bitmap.chunkCount ? bitmap.nextDirtyChunk(next) : -1;
      }
      if (chunks.length > 0) yield { kind: "send", block: index, chunks };
    }
  }

  async #run(channel: number, task: SendTask): Promise<void> {
    assert(channel >= 1 && channel <= this.#channels, "a task goes to a bulk channel");
    const pages = await this.#pool.run(channel, task);
    if (pages === null) throw new Stopped();
  }

  async #onAllChannels(work: (channel: number) => Promise<void>): Promise<void> {
    const channels = Array.from({ length: this.#channels }, (_, index) => index + 1);
    const outcomes = await Promise.allSettled(channels.map(work));
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  #totals(): ReturnType<typeof sumCounters> {
    return sumCounters(this.control, this.#channels);
  }
}
