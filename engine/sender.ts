import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { siblingModule } from "../base/module.ts";
import { Stopped } from "../channels/descriptor.ts";
import { type Control, createControl, isHurried, setHurried } from "../workers/control.ts";
import { firstKeys, shardBytes } from "../workers/delta-cache.ts";
import type {
  ChannelPlace,
  ScanPart,
  SendBlock,
  SendSetup,
  SendTask,
} from "../workers/protocol.ts";
import { type Block, type Geometry, geometryOf } from "./block.ts";
import type { ScanFacts } from "./convergence.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";
import type { DirtyLog, ScanLog } from "./dirty-log.ts";
import { channelFigures, sumCounters } from "./figures.ts";
import { laneCountOf } from "./lanes.ts";
import { applySettings, cacheBytesOf } from "./live-settings.ts";
import type { Parameters } from "./parameters.ts";
import { ScannedBlock } from "./scanned-block.ts";
import { ownerOf } from "./shards.ts";
import type { ChannelFigures, RoundFigures } from "./statistics.ts";
import type { Surroundings, ThreadPool } from "./surroundings.ts";

/**
 * A task's worth of dirty pages: enough to make the hand-over to the thread cheap (some 100 us of
 * both threads, and a core that the coordinator takes from a thread that is sending: with 8 MiB it
 * cost the source a tenth of its time). Who wants a round to end soon need not wait for a task.
 */
const TASK_BYTES = 64 * 2 ** 20;
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
  /** What its threads know, for those of the priority lanes. */
  readonly setup: SendSetup;
  readonly #lanes: number;
  readonly #blocks: readonly SentBlock[];
  readonly #channels: number;
  readonly #pool: ThreadPool;
  /** By their place among the blocks. */
  #scanned: ReadonlyMap<number, ScannedBlock> = new Map();
  /** Of these, those of which the round has not looked at every page that may have changed. */
  #unscanned: ReadonlySet<number> = new Set();
  #fences = 0;
  #rounds = 0;
  /** The quickest answer to a fence so far: the first one of a channel has nothing to wait for. */
  #roundTripMs = Number.POSITIVE_INFINITY;

  /** Starts the threads. Everything is dirty. */
  constructor(blocks: readonly Block[], parameters: Parameters, surroundings: Surroundings) {
    this.#channels = parameters.channels;
    this.#lanes = laneCountOf(parameters);
    this.control = createControl(parameters.channels + this.#lanes);
    applySettings(this.control, parameters);
    this.#blocks = blocks.map((block) => {
      const geometry = geometryOf(block, parameters.chunkBytes);
      const bitmap = new DirtyBitmap(geometry);
      bitmap.fill();
      return { block, bitmap, ...geometry };
    });
    this.setup = {
      control: this.control,
      blocks: this.#sendBlocks(),
      channels: parameters.channels,
      cacheBytes: cacheBytesOf(parameters, shardBytes(this.#blocks, parameters.channels)),
      hasChecksum: parameters.checksum,
      channelTimeoutMs: parameters.channelTimeoutMs,
      fenceTimeoutMs: parameters.stepTimeoutMs,
    };
    const module = siblingModule("../workers/send-worker", import.meta.url);
    const { channels } = parameters;
    this.#pool = surroundings.startThreads({ module, setup: this.setup, channels });
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
    const scanned = new Map<number, ScannedBlock>();
    for (const [index, { block, ...geometry }] of this.#blocks.entries()) {
      const own = logs.filter((log) => log.block === block.name);
      if (own.length > 0) scanned.set(index, new ScannedBlock(block, geometry, own));
    }
    if (scanned.size === 0) return;
    this.#scanned = scanned;
    const tables = new Map(Array.from(scanned, ([index, block]) => [index, block.tables]));
    await this.#onAllChannels((channel) => this.#run(channel, { kind: "scan", tables }));
  }

  /** Whether the last round has looked at all memory that is scanned and may have changed. */
  get isScanComplete(): boolean {
    return this.#unscanned.size === 0;
  }

  /** Pages that are known to be dirty: of those that are scanned, what was not sent yet. */
  get dirtyPages(): number {
    return this.#blocks.reduce((sum, { bitmap }) => sum + bitmap.dirtyCount(), 0);
  }

  /** The pages that are dirty, block by block, for the destination to miss. */
  *dirtyWords(): Generator<{ block: number; words: Int32Array }> {
    for (const [block, { bitmap }] of this.#blocks.entries()) {
      yield { block, words: bitmap.words.words };
    }
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
    const parts = await this.#scanLikely();
    await this.#onAllChannels(async (channel) => {
      await this.#sendShard(channel, parts);
      fencedMs += await this.#fence(channel);
    });
    this.#unscanned = new Set(isHurried(this.control) ? this.#scanned.keys() : []);
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
    setHurried(this.control, true);
  }

  resumeRounds(): void {
    setHurried(this.control, false);
  }

  async end(): Promise<void> {
    await this.#onAllChannels((channel) => this.#run(channel, { kind: "end" }));
  }

  get sentBytes(): number {
    return this.#totals().movedBytes;
  }

  channelFigures(): ChannelFigures[] {
    return channelFigures(this.control, this.#channels, this.#lanes);
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

  /**
   * Scans what is likely to have changed where the kernel tells which memory is in use. Returns what
   * the round has to look at then, by block. In the first round that is everything.
   */
  async #scanLikely(): Promise<Map<number, ScanPart>> {
    const parts = new Map<number, ScanPart>(this.#blocks.map((_, index) => [index, "all"]));
    const likely = new Map<number, ScanPart>();
    for (const [index, scanned] of this.#rounds === 1 ? [] : this.#scanned) {
      const looks = await scanned.looks(index, this.#channels);
      if (looks === null) continue;
      const look = (channel: number): Promise<number> =>
        this.#run(channel, must(looks[channel - 1], "every channel looks"));
      scanned.looked(await this.#onAllChannels(look));
      likely.set(index, "likely");
    }
    if (likely.size === 0) return parts;
    await this.#onAllChannels((channel) => this.#sendShard(channel, likely));
    for (const index of likely.keys()) {
      const scanned = must(this.#scanned.get(index), "what was looked at is scanned");
      if (await scanned.isRestEmpty()) parts.delete(index);
      else parts.set(index, "rest");
    }
    return parts;
  }

  /** Walks a channel's chunks, in order, and keeps its thread busy. */
  async #sendShard(channel: number, parts: ReadonlyMap<number, ScanPart>): Promise<void> {
    const inFlight = new Set<Promise<unknown>>();
    for (const task of this.#tasksOf(channel, parts)) {
      if (isHurried(this.control)) break;
      const running = this.#run(channel, task).finally(() => inFlight.delete(running));
      inFlight.add(running);
      // Someone must always look at a rejection, also when another task is awaited.
      running.catch(() => {});
      if (inFlight.size >= TASKS_IN_FLIGHT) await Promise.race(inFlight);
    }
    await Promise.all(inFlight);
  }

  *#tasksOf(channel: number, parts: ReadonlyMap<number, ScanPart>): Generator<SendTask> {
    for (const [index, part] of parts) {
      const { pageBytes } = must(this.#blocks[index], "a part is of a block");
      const task = { kind: "send", block: index, round: this.#rounds, part } as const;
      let chunks: number[] = [];
      let bytes = 0;
      for (const { chunk, pages } of this.#workOf(channel, index, part)) {
        chunks.push(chunk);
        bytes += pages * pageBytes;
        if (bytes < TASK_BYTES && chunks.length < TASK_CHUNKS_MAX) continue;
        yield { ...task, chunks };
        chunks = [];
        bytes = 0;
      }
      if (chunks.length > 0) yield { ...task, chunks };
    }
  }

  /** The chunks of a block that a channel has to look at, and how many of their pages. */
  *#workOf(
    channel: number,
    index: number,
    part: ScanPart,
  ): Generator<{ chunk: number; pages: number }> {
    const { bitmap } = must(this.#blocks[index], "a part is of a block");
    const scanned = this.#scanned.get(index);
    for (let chunk = 0; chunk < bitmap.chunkCount; chunk += 1) {
      if (scanned === undefined) chunk = bitmap.nextDirtyChunk(chunk);
      if (chunk === -1) return;
      if (ownerOf(chunk, this.#channels) !== channel) continue;
      const pages = scanned?.pagesOf(chunk, part) ?? bitmap.dirtyCountOf(chunk);
      if (pages > 0 || bitmap.isChunkDirty(chunk)) yield { chunk, pages };
    }
  }

  async #run(channel: number, task: SendTask): Promise<number> {
    assert(channel >= 1 && channel <= this.#channels, "a task goes to a bulk channel");
    try {
      const result = await this.#pool.run(channel, task);
      if (result === null) throw new Stopped();
      return result;
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

  async #onAllChannels<T>(work: (channel: number) => Promise<T>): Promise<T[]> {
    const channels = Array.from({ length: this.#channels }, (_, index) => index + 1);
    const outcomes = await Promise.allSettled(channels.map(work));
    return outcomes.map((outcome) => {
      if (outcome.status === "rejected") throw outcome.reason;
      return outcome.value;
    });
  }

  #totals(): ReturnType<typeof sumCounters> {
    return sumCounters(this.control, this.#channels + this.#lanes);
  }
}
