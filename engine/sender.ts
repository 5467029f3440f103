import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { siblingModule } from "../base/module.ts";
import { Stopped } from "../channels/descriptor.ts";
import { type Control, createControl } from "../workers/control.ts";
import { firstKeys, shardBytes } from "../workers/delta-cache.ts";
import type {
  ChannelPlace,
  SendBlock,
  SendSetup,
  SendTask,
  SentPages,
} from "../workers/protocol.ts";
import { type Block, type Geometry, geometryOf } from "./block.ts";
import type { ScanFacts } from "./convergence.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";
import type { DirtyLog, ScanLog } from "./dirty-log.ts";
import { channelFigures, sumCounters } from "./figures.ts";
import { applySettings, cacheBytesOf } from "./live-settings.ts";
import type { Parameters } from "./parameters.ts";
import { ChannelPool } from "./pool.ts";
import { createSentPages } from "./sent-pages.ts";
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
  /** Null where nothing is scanned. */
  readonly scan: ScanFacts | null;
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
  /** What was sent of the blocks that are scanned, by their place among the blocks. */
  #scanned: ReadonlyMap<number, SentPages> = new Map();
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

  /** From the first round on, the blocks that the logs name are scanned in every round. */
  async scan(logs: readonly ScanLog[]): Promise<void> {
    assert(this.#rounds === 0, "a scan remembers what was sent from the start");
    const names = new Set(logs.map(({ block }) => block));
    const scanned = new Map<number, SentPages>();
    for (const [index, { block, pageCount }] of this.#blocks.entries()) {
      if (names.has(block.name)) scanned.set(index, createSentPages(pageCount));
    }
    if (scanned.size === 0) return;
    this.#scanned = scanned;
    await this.#onAllChannels((channel) => this.#run(channel, { kind: "scan", sent: scanned }));
  }

  /** Pages that are known to be dirty: of those that are scanned, what was not sent yet. */
  get dirtyPages(): number {
    return this.#blocks.reduce((sum, { bitmap }) => sum + bitmap.dirtyCount(), 0);
  }

  get dirtyBytes(): number {
    return this.#blocks.reduce(
      (sum, { bitmap }) => sum + bitmap.dirtyCount() * bitmap.pageBytes,
      0,
    );
  }

  /** Guest memory that is dirty as the logs tell, without what is scanned. */
  get loggedBytes(): number {
    return this.#logged().bytes;
  }

  #logged(): { pages: number; bytes: number } {
    let [pages, bytes] = [0, 0];
    for (const [index, { bitmap }] of this.#blocks.entries()) {
      if (this.#scanned.has(index)) continue;
      const count = bitmap.dirtyCount();
      pages += count;
      bytes += count * bitmap.pageBytes;
    }
    return { pages, bytes };
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
    const isFirst = this.#rounds === 1;
    const all = { pages: this.dirtyPages, bytes: this.dirtyBytes };
    const logged = this.#logged();
    const before = this.#totals();
    let fencedMs = 0;
    await this.#onAllChannels(async (channel) => {
      await this.#sendShard(channel);
      fencedMs += await this.#fence(channel);
    });
    const after = this.#totals();
    const foundBytes = after.foundBytes - before.foundBytes;
    return {
      dirtyPages: isFirst ? all.pages : logged.pages + after.foundPages - before.foundPages,
      guestBytes: isFirst ? all.bytes : logged.bytes + foundBytes,
      scan:
        this.#scanned.size === 0
          ? null
          : {
              scannedBytes: after.scannedBytes - before.scannedBytes,
              scanMs: (after.scanMs - before.scanMs) / this.#channels,
              foundBytes: isFirst ? null : foundBytes,
            },
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
    for (const index of this.#blocks.keys()) {
      let chunks: number[] = [];
      let bytes = 0;
      for (const chunk of this.#chunksOf(index)) {
        if (ownerOf(chunk, this.#channels) !== channel) continue;
        chunks.push(chunk);
        bytes += this.#workBytes(index, chunk);
        if (bytes < TASK_BYTES && chunks.length < TASK_CHUNKS_MAX) continue;
        yield { kind: "send", block: index, chunks, round: this.#rounds };
        chunks = [];
        bytes = 0;
      }
      if (chunks.length > 0) yield { kind: "send", block: index, chunks, round: this.#rounds };
    }
  }

  /** The chunks of a block that somebody has to look at in this round. */
  *#chunksOf(index: number): Generator<number> {
    const { bitmap } = must(this.#blocks[index], "a block that is sent is there");
    const isScanned = this.#scanned.has(index);
    for (let chunk = 0; chunk < bitmap.chunkCount; chunk += 1) {
      if (!isScanned) chunk = bitmap.nextDirtyChunk(chunk);
      if (chunk === -1) return;
      yield chunk;
    }
  }

  /** Guest memory that is read for a chunk. */
  #workBytes(index: number, chunk: number): number {
    const { bitmap, pageBytes, pagesPerChunk } = must(this.#blocks[index], "a chunk has a block");
    return (this.#scanned.has(index) ? pagesPerChunk : bitmap.dirtyCountOf(chunk)) * pageBytes;
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
