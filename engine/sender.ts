import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { siblingModule } from "../base/module.ts";
import { Stopped } from "../channels/descriptor.ts";
import { type Control, createControl } from "../workers/control.ts";
import { firstKeys, shardBytes } from "../workers/delta-cache.ts";
import type { ChannelPlace, SendBlock, SendSetup, SendTask } from "../workers/protocol.ts";
import { type Block, type Geometry, geometryOf } from "./block.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";
import type { DirtyLog } from "./dirty-log.ts";
import { channelFigures, sumCounters } from "./figures.ts";
import { applySettings, cacheBytesOf } from "./live-settings.ts";
import type { Parameters } from "./parameters.ts";
import { ChannelPool } from "./pool.ts";
import { ownerOf } from "./shards.ts";
import type { ChannelFigures, RoundFigures } from "./statistics.ts";

/**
 * A task's worth of dirty pages: enough to make the hand-over to the thread cheap (some 100 us of
 * both threads for milliseconds of work), small enough that a round that is hurried ends soon.
 */
const TASK_BYTES = 8 * 2 ** 20;
/** An almost clean guest: so many chunks with a page or two each go in one task. */
const TASK_CHUNKS_MAX = 256;
/** One task runs while the next one is on its way to the thread. */
const TASKS_IN_FLIGHT = 2;

/** What a round sent, and what the policy wants to know of it besides; see `RoundFacts`. */
export interface SentRound extends RoundFigures {
  readonly sendMs: number;
  readonly guestBytes: number;
  readonly roundTripMs: number;
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
  #rounds = 0;
  /** The quickest answer to a fence so far: the first one of a channel has nothing to wait for. */
  #roundTripMs = Number.POSITIVE_INFINITY;
  #isHurried = false;

  /** Starts the threads. Everything is dirty. */
  constructor(blocks: readonly Block[], parameters: Parameters) {
    this.#channels = parameters.channels;
    this.control = createControl(parameters.channels);
    applySettings(this.control, parameters);
    this.#blocks = blocks.map((block) => {
      const geometry = geometryOf(block, parameters.chunkBytes);
      const bitmap = new DirtyBitmap(geometry);
      bitmap.fill();
      return { block, bitmap, ...geometry };
    });
    const setup: SendSetup = {
      control: this.control,
      blocks: this.#sendBlocks(),
      channels: parameters.channels,
      cacheBytes: cacheBytesOf(parameters, shardBytes(this.#blocks, parameters.channels)),
      hasChecksum: parameters.checksum,
      channelTimeoutMs: parameters.channelTimeoutMs,
      fenceTimeoutMs: parameters.stepTimeoutMs,
    };
    const module = siblingModule("../workers/send-worker", import.meta.url);
    this.#pool = new ChannelPool({ module, setup, channels: parameters.channels });
  }

  /** Takes parameters over that changed while it runs. */
  change(parameters: Parameters): void {
    applySettings(this.control, parameters);
  }

  async open(place: ChannelPlace): Promise<void> {
    await this.#run(place.channel, { kind: "open", place });
    await this.#fence(place.channel);
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

  /** The blocks as the threads need them. */
  #sendBlocks(): SendBlock[] {
    const keys = firstKeys(this.#blocks, this.#channels);
    return this.#blocks.map(({ block, bitmap, pageBytes, pageCount, pagesPerChunk }, index) => {
      const { name, sizeBytes, place } = block;
      const geometry = { pageBytes, pageCount, pagesPerChunk };
      const firstKey = must(keys[index], "every block has keys");
      return { name, sizeBytes, place, ...geometry, dirty: bitmap.words, firstKey };
    });
  }

  /**
   * Sends everything that is dirty, each chunk in the channel that owns it, until the destination
   * has applied it. Megabytes may be on their way when the last one is written: a round that ended
   * there would hold the link to be faster than it is, and the guest would wait for them at rest.
   */
  async sendRound(): Promise<SentRound> {
    this.#rounds += 1;
    const startMs = nowMs();
    const dirtyPages = this.dirtyPages;
    const guestBytes = this.dirtyBytes;
    const before = this.#totals();
    let fencedMs = 0;
    await this.#onAllChannels(async (channel) => {
      await this.#sendShard(channel);
      fencedMs += await this.#fence(channel);
    });
    const after = this.#totals();
    return {
      dirtyPages,
      guestBytes,
      sentPages: after.pages - before.pages,
      sentBytes: after.movedBytes - before.movedBytes,
      sendMs: (after.sendMs - before.sendMs + fencedMs) / this.#channels,
      roundTripMs: this.#roundTripMs,
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

  /** Returns, with the time it took, when the destination has applied all that the channel sent. */
  async #fence(channel: number): Promise<number> {
    this.#fences += 1;
    const startMs = nowMs();
    await this.#run(channel, { kind: "fence", number: this.#fences });
    const fencedMs = nowMs() - startMs;
    this.#roundTripMs = Math.min(this.#roundTripMs, fencedMs);
    return fencedMs;
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
            yield { kind: "send", block: index, chunks, round: this.#rounds };
            chunks = [];
            bytes = 0;
          }
        }
        const next = chunk + 1;
        chunk = next < bitmap.chunkCount ? bitmap.nextDirtyChunk(next) : -1;
      }
      if (chunks.length > 0) yield { kind: "send", block: index, chunks, round: this.#rounds };
    }
  }

  async #run(channel: number, task: SendTask): Promise<void> {
    assert(channel >= 1 && channel <= this.#channels, "a task goes to a bulk channel");
    try {
      const pages = await this.#pool.run(channel, task);
      if (pages === null) throw new Stopped();
    } catch (error) {
      if (error instanceof MigrationError && error.code === "WORKER_DIED") this.#putBack(task);
      throw error;
    }
  }

  /** A thread that fails puts back the bits that it took. One that died took them along. */
  #putBack(task: SendTask): void {
    if (task.kind !== "send") return;
    const { bitmap } = must(this.#blocks[task.block], "a task names a block that exists");
    for (const chunk of task.chunks) bitmap.fillChunk(chunk);
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
