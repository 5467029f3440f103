import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import type { MigrationError } from "../base/errors.ts";
import { sendBlockOf } from "../workers/blocks.ts";
import { type Control, createControl, isHurried, setHurried } from "../workers/control.ts";
import { firstKeys, shardBytes } from "../workers/delta-cache.ts";
import { PAGES_PER_WORD, undoWords } from "../workers/dirty-words.ts";
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
import { isLoss } from "./loss.ts";
import type { Parameters } from "./parameters.ts";
import { Pass } from "./pass.ts";
import { pageModule, type ReadyThreads } from "./ready-threads.ts";
import { evenWeights, learn, sharesFor, spared, type Weights, weightsOf } from "./rebalance.ts";
import { type LookTask, ScannedBlock } from "./scanned-block.ts";
import { SendChannel } from "./send-channel.ts";
import { Shards } from "./shards.ts";
import type { ChannelFigures, RoundFigures } from "./statistics.ts";
import type { Surroundings, ThreadPool } from "./surroundings.ts";
import { type Batch, Work } from "./work.ts";

/** Channels help each other where a round ends sooner by this at least. */
const HELP_PAYS_MS = 20;
/** Where deltas are made, help costs whole pages instead of differences, twice. */
const HELP_PAYS_DELTA_MS = 500;

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

/** What becomes of connections that are lost. Both ends know them by their channel's number. */
export interface ChannelKeeper {
  /** Lets go of one; returns when nothing that came over it will be applied any more. */
  giveUp(channel: number): Promise<void>;
  /** Another one in its place, or null where none can be had. */
  replace(channel: number): Promise<ChannelPlace | null>;
  /** Closes a replacement that came too late to be of use. */
  discard(channel: number): void;
}

/** Another connection for a channel that was given up. */
interface Replacement {
  readonly done: Promise<unknown>;
  /** Null once it was sought in vain, undefined before. */
  place: ChannelPlace | null | undefined;
}

/** The source's pages: what is dirty, who sends it, and what was sent. */
export class Sender {
  readonly control: Control;
  /** What its threads know, for those of the priority lanes. */
  readonly setup: SendSetup;
  readonly #lanes: number;
  readonly #blocks: readonly SentBlock[];
  /** By block; see `SendBlock`. */
  readonly #sent: Int32Array[] = [];
  readonly #channels: readonly SendChannel[];
  readonly #pool: ThreadPool;
  readonly #keeper: ChannelKeeper | null;
  readonly #chunkBytes: number;
  readonly #hasCache: boolean;
  readonly #shards: Shards;
  #weights: Weights;
  /** For channels that are lost and were given up. */
  readonly #replacements = new Map<number, Replacement>();
  readonly #givingUp = new Map<number, Promise<void>>();
  #work = new Work();
  #parts: ReadonlyMap<number, ScanPart> = new Map();
  /** By their place among the blocks. */
  #scanned: ReadonlyMap<number, ScannedBlock> = new Map();
  /** Of these, those of which the round has not looked at every page that may have changed. */
  #unscanned: ReadonlySet<number> = new Set();
  #rounds = 0;
  /** The quickest answer to a fence so far: the first one of a channel has nothing to wait for. */
  #roundTripMs = Number.POSITIVE_INFINITY;

  /**
   * Starts the threads. Everything is dirty, or nothing where `isClean`. Without a keeper a lost
   * channel is the end.
   */
  constructor(
    blocks: readonly Block[],
    parameters: Parameters,
    surroundings: Surroundings,
    keeper: ChannelKeeper | null = null,
    { isClean = false, ready }: { isClean?: boolean; ready?: ReadyThreads | undefined } = {},
  ) {
    const { channels } = parameters;
    this.#keeper = keeper;
    this.#lanes = laneCountOf(parameters);
    this.#chunkBytes = parameters.chunkBytes;
    this.#shards = new Shards(channels);
    this.control = createControl(channels + this.#lanes);
    applySettings(this.control, parameters);
    this.#blocks = blocks.map((block) => {
      const geometry = geometryOf(block, parameters.chunkBytes);
      const bitmap = new DirtyBitmap(geometry);
      if (!isClean) bitmap.fill();
      return { block, bitmap, ...geometry };
    });
    const cacheBytes = cacheBytesOf(parameters, shardBytes(this.#blocks, channels));
    this.#hasCache = cacheBytes > 0;
    this.setup = {
      control: this.control,
      blocks: this.#sendBlocks(channels),
      channels,
      cacheBytes,
      xbzrle: parameters.xbzrle,
      hasChecksum: parameters.checksum,
      channelTimeoutMs: parameters.channelTimeoutMs,
      fenceTimeoutMs: parameters.stepTimeoutMs,
    };
    const module = pageModule("source");
    const pool = surroundings.startThreads({
      module,
      setup: this.setup,
      channels,
      ready: ready?.pages,
    });
    this.#pool = pool;
    const numbers = Array.from({ length: channels }, (_, index) => index + 1);
    this.#channels = numbers.map((number) => new SendChannel(number, pool, this.control));
    this.#weights = evenWeights(numbers);
  }

  /** Takes parameters over that changed while it runs. */
  change(parameters: Parameters): void {
    applySettings(this.control, parameters);
  }

  async open(place: ChannelPlace): Promise<void> {
    const roundTripMs = await this.#channel(place.channel).open(place);
    this.#roundTripMs = Math.min(this.#roundTripMs, roundTripMs);
  }

  /** The other end says that it lost this channel. */
  lose(channel: number, error: MigrationError): void {
    this.#channel(channel).lose(error);
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
    // Whoever is lost by now learns it with its next connection.
    const working = this.#channels.filter(({ doom }) => doom === null);
    await Promise.all(working.map((channel) => this.#tellTables(channel)));
  }

  /** Whether the last round has looked at all memory that is scanned and may have changed. */
  get isScanComplete(): boolean {
    return this.#unscanned.size === 0;
  }

  /** Pages that are known to be dirty: of those that are scanned, what was not sent yet. */
  get dirtyPages(): number {
    return this.dirty.pages;
  }

  /** The same pages, and their bytes, by one walk: it takes its time where a TiB is dirty. */
  get dirty(): { pages: number; bytes: number } {
    let [pages, bytes] = [0, 0];
    for (const { bitmap } of this.#blocks) {
      const count = bitmap.dirtyCount();
      pages += count;
      bytes += count * bitmap.pageBytes;
    }
    return { pages, bytes };
  }

  /** Pages of a block are dirty, from a page that starts a word on. Returns those that were not. */
  markDirty(block: number, firstPage: number, bits: Int32Array): number {
    const { bitmap } = must(this.#blocks[block], "dirty pages are of a block that exists");
    return undoWords(bitmap.words, firstPage / PAGES_PER_WORD, bits);
  }

  /** Pages and their numbers on the wire. */
  get geometries(): readonly Geometry[] {
    return this.#blocks;
  }

  /**
   * Makes whole pages of the hosts dirty: one that travels in pieces is either at the destination, or
   * missing and sent in full, for nobody can give up or place a part of it.
   */
  widen(): void {
    for (const { block, bitmap } of this.#blocks) {
      if (block.pageBytes > bitmap.pageBytes) bitmap.widen(block.pageBytes / bitmap.pageBytes);
    }
  }

  /** The pages that are dirty, block by block, for the destination to miss. */
  *dirtyWords(): Generator<{ block: number; words: Int32Array }> {
    for (const [block, { bitmap }] of this.#blocks.entries()) {
      yield { block, words: bitmap.words.words };
    }
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
  #sendBlocks(channels: number): SendBlock[] {
    const keys = firstKeys(this.#blocks, channels);
    return this.#blocks.map(({ block, bitmap, pageBytes, pageCount, pagesPerChunk }, index) => {
      const region = { ...block, pageBytes, pageCount, pagesPerChunk };
      const firstKey = must(keys[index], "every block has keys");
      const made = sendBlockOf(region, { dirty: bitmap.words, firstKey });
      this.#sent.push(made.sent);
      return made;
    });
  }

  /**
   * Sends everything that is dirty, until the destination has applied it. Megabytes may be on their
   * way when the last one is written: a round that ended there would hold the link to be faster than
   * it is, and the guest would wait for them at rest. The others make up for channels that are lost
   * meanwhile; it throws when none is left.
   */
  async sendRound(): Promise<SentRound> {
    this.#rounds += 1;
    const startMs = nowMs();
    const isFirst = this.#rounds === 1;
    const all = this.dirty;
    const logged = isFirst ? all : this.#logged();
    const before = this.#totals();
    const likely = await this.#scanLikely();
    const fencedMs = likely.fencedMs + (await this.#pass(likely.parts));
    this.#unscanned = new Set(isHurried(this.control) ? this.#scanned.keys() : []);
    const after = this.#totals();
    const foundBytes = after.foundBytes - before.foundBytes;
    const channels = Math.max(1, this.liveChannels);
    return {
      dirtyPages: isFirst ? all.pages : logged.pages + after.foundPages - before.foundPages,
      guestBytes: isFirst ? all.bytes : logged.bytes + foundBytes,
      scan:
        this.#scanned.size === 0
          ? null
          : {
              scannedBytes: after.scannedBytes - before.scannedBytes,
              scanMs: (after.scanMs - before.scanMs) / channels,
              foundBytes: isFirst ? null : foundBytes,
            },
      sentPages: after.pages - before.pages,
      sentBytes: after.movedBytes - before.movedBytes,
      sendMs: (after.sendMs - before.sendMs + fencedMs) / channels,
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

  /** Says on every channel that nothing follows; one that is lost by now is no loss. */
  async end(): Promise<void> {
    const working = this.#channels.filter(({ doom }) => doom === null);
    await allOf(working, async (channel) => {
      try {
        await channel.run({ kind: "end" });
      } catch (error) {
        if (!isLoss(error) || this.#keeper === null) throw error;
        channel.lose(error);
      }
    });
    for (const [channel, { place }] of this.#replacements) {
      if (place !== undefined && place !== null) this.#keeper?.discard(channel);
    }
    this.#replacements.clear();
  }

  /** A channel whose thread has had something to do for `limitMs` and did nothing. */
  stuckChannel(limitMs: number): number | null {
    return this.#channels.find(({ stuckMs }) => stuckMs > limitMs)?.number ?? null;
  }

  /** Channels that work, as far as is known. */
  get liveChannels(): number {
    return this.#channels.filter(({ doom }) => doom === null).length;
  }

  get sentBytes(): number {
    return this.#totals().movedBytes;
  }

  /** Where the whole leg broke, whoever adds up legs counts that loss, and no channel does by itself. */
  channelFigures({ isBroken }: { isBroken: boolean }): ChannelFigures[] {
    const losses = this.#channels.map(({ losses, doom }) => {
      return isBroken && doom !== null ? losses - 1 : losses;
    });
    return channelFigures(this.control, losses, this.#lanes);
  }

  counters(): ReturnType<typeof sumCounters> {
    return this.#totals();
  }

  /** False when a thread hangs and still holds its descriptors; see `ChannelPool.close`. */
  async close(limitMs?: number): Promise<boolean> {
    return await this.#pool.close(limitMs);
  }

  /**
   * Scans what is likely to have changed where the kernel tells which memory is in use. Returns what
   * the round has to look at then, by block. In the first round that is everything.
   */
  async #scanLikely(): Promise<{ parts: Map<number, ScanPart>; fencedMs: number }> {
    const parts = new Map<number, ScanPart>(this.#blocks.map((_, index) => [index, "all"]));
    const likely = new Map<number, ScanPart>();
    for (const [index, scanned] of this.#rounds === 1 ? [] : this.#scanned) {
      const looks = await scanned.looks(index, this.#channels.length);
      if (looks === null) continue;
      scanned.looked(await allOf(looks, (task, at) => this.#look(task, at)));
      likely.set(index, "likely");
    }
    if (likely.size === 0) return { parts, fencedMs: 0 };
    const fencedMs = await this.#pass(likely);
    for (const index of likely.keys()) {
      const scanned = must(this.#scanned.get(index), "what was looked at is scanned");
      if (await scanned.isRestEmpty()) parts.delete(index);
      else parts.set(index, "rest");
    }
    return { parts, fencedMs };
  }

  /** Any thread may look, also for a channel that is lost. Nothing is known where one is lost then. */
  async #look(task: LookTask, at: number): Promise<number> {
    const live = await this.#live();
    const channel = must(live[at % live.length], "some channel works");
    try {
      return (await channel.run(task)).pages;
    } catch (error) {
      if (!isLoss(error)) throw error;
      return await this.#look(task, at);
    }
  }

  /**
   * Sends what is dirty of these parts. As it ends with a fence, the next pass may send any chunk in
   * any channel. Returns the time spent in waiting for fences, all channels together.
   */
  async #pass(parts: ReadonlyMap<number, ScanPart>): Promise<number> {
    this.#work = new Work();
    await this.#live();
    this.#shareOut();
    this.#parts = parts;
    const chunkBytes = this.#plan(parts);
    const pass = new Pass(this.#work, {
      control: this.control,
      taskOf: (batch) => taskOf(batch, this.#rounds),
      paysMs: this.#hasCache && this.#rounds > 1 ? HELP_PAYS_DELTA_MS : HELP_PAYS_MS,
      chunkBytes,
      live: () => this.#live(),
      giveUp: (channel) => this.#giveUp(channel),
      onDeath: (batch) => this.#putBack(batch),
    });
    await pass.run();
    this.#weights = learn(this.#weights, pass.paces);
    this.#roundTripMs = Math.min(this.#roundTripMs, pass.roundTripMs);
    return pass.fencedMs;
  }

  /**
   * Has every chunk that a pass must look at wait for the channel where it is at home. Returns the
   * size of an ordinary one.
   */
  #plan(parts: ReadonlyMap<number, ScanPart>): number {
    let chunks = 0;
    let allBytes = 0;
    for (const [block, part] of parts) {
      for (const { chunk, bytes } of this.#workOf(block, part)) {
        this.#work.add(this.#shards.homeOf(chunk), { block, part }, chunk, bytes);
        chunks += 1;
        allBytes += bytes;
      }
    }
    const idle = spared(this.#weights, chunks);
    const busy = [...this.#weights.keys()].filter((channel) => !idle.has(channel));
    for (const channel of idle) {
      this.#work.drain(channel, (chunk) => must(busy[chunk % busy.length], "not all are slow"));
    }
    return chunks === 0 ? this.#chunkBytes : allBytes / chunks;
  }

  /** The chunks of a block that must be looked at, and how much of them. */
  *#workOf(index: number, part: ScanPart): Generator<{ chunk: number; bytes: number }> {
    const { bitmap } = must(this.#blocks[index], "a part is of a block");
    const isScanned = this.#scanned.has(index);
    for (let chunk = 0; chunk < bitmap.chunkCount; chunk += 1) {
      if (!isScanned) chunk = bitmap.nextDirtyChunk(chunk);
      if (chunk === -1) return;
      const bytes = this.#bytesOf(index, chunk, part);
      if (bytes > 0 || bitmap.isChunkDirty(chunk)) yield { chunk, bytes };
    }
  }

  #bytesOf(index: number, chunk: number, part: ScanPart): number {
    const { bitmap } = must(this.#blocks[index], "a part is of a block");
    const pages = this.#scanned.get(index)?.pagesOf(chunk, part) ?? bitmap.dirtyCountOf(chunk);
    return pages * bitmap.pageBytes;
  }

  /** Everything is fenced: chunks may change their homes, if that pays. */
  #shareOut(): void {
    const live = this.#channels.filter(({ doom }) => doom === null).map(({ number }) => number);
    this.#weights = weightsOf(this.#weights, live);
    const wanted = sharesFor(this.#weights, this.#shards.shares, this.#shards.slotCount);
    if (wanted !== null) this.#shards.share(wanted);
  }

  /**
   * The channels that work, with those that have another connection by now; what waits for others is
   * passed on to them. Throws why the last one was lost when none works, and none will.
   */
  async #live(): Promise<readonly SendChannel[]> {
    for (;;) {
      const lost = this.#channels.filter(({ doom }) => doom !== null);
      await allOf(lost, (channel) => this.#takeUp(channel));
      const live = this.#channels.filter(({ doom }) => doom === null);
      this.#passOn();
      if (live.length > 0) return live;
      const awaited = [...this.#replacements.values()].filter(({ place }) => place === undefined);
      if (awaited.length === 0) throw must(lost.at(-1)?.doom, "who is lost has a reason");
      await Promise.race(awaited.map(({ done }) => done));
    }
  }

  /** A lost channel that has another connection by now goes on with it. */
  async #takeUp(channel: SendChannel): Promise<void> {
    const replacement = this.#replacements.get(channel.number);
    // It may have been lost while it had nothing to do, and nobody has met its end yet.
    if (replacement === undefined) return await this.#giveUp(channel);
    const { place } = replacement;
    if (place === undefined || place === null) return;
    this.#replacements.delete(channel.number);
    try {
      await channel.open(place);
      await this.#tellTables(channel);
    } catch (error) {
      if (!isLoss(error)) throw error;
      channel.lose(error);
      await this.#giveUp(channel);
    }
  }

  /** Gives a lost channel up, once, whoever finds that it is lost. */
  async #giveUp(channel: SendChannel): Promise<void> {
    const { number } = channel;
    const known = this.#givingUp.get(number);
    if (known !== undefined) return await known;
    const done = this.#recover(channel).finally(() => this.#givingUp.delete(number));
    this.#givingUp.set(number, done);
    await done;
  }

  /**
   * A channel is lost, and its thread has no task. Once the destination lets go of it, too, what may
   * not have arrived is dirty again and waits for the others. Another connection is sought meanwhile.
   */
  async #recover(channel: SendChannel): Promise<void> {
    const { number } = channel;
    const keeper = this.#keeper;
    if (keeper === null) throw must(channel.doom, "who is lost has a reason");
    this.#passOn();
    await keeper.giveUp(number);
    const again = new Map<number, Set<number>>();
    const note = ({ block, chunks }: Batch): void => {
      const known = again.get(block) ?? new Set();
      for (const chunk of chunks) known.add(chunk);
      again.set(block, known);
    };
    for (const batch of channel.unfenced) this.#unsend(batch);
    for (const batch of [...channel.unfenced, ...channel.given]) note(batch);
    channel.unfenced.length = 0;
    channel.given.clear();
    for (const [block, chunks] of again) {
      const part = this.#parts.get(block) ?? "all";
      for (const chunk of chunks) {
        this.#work.add(number, { block, part }, chunk, this.#bytesOf(block, chunk, part));
      }
    }
    this.#seek(number, keeper);
    this.#passOn();
  }

  #seek(channel: number, keeper: ChannelKeeper): void {
    const done = keeper.replace(channel).then(
      (place) => {
        replacement.place = place;
      },
      () => {
        replacement.place = null;
      },
    );
    const replacement: Replacement = { done, place: undefined };
    this.#replacements.set(channel, replacement);
  }

  /** What waits for channels that are lost waits for others from here on, if there are any. */
  #passOn(): void {
    const live = this.#channels.filter(({ doom }) => doom === null);
    if (live.length === 0) return;
    for (const { number, doom } of this.#channels) {
      if (doom === null) continue;
      const heirOf = (chunk: number): number =>
        must(live[chunk % live.length], "somebody works").number;
      this.#work.drain(number, heirOf);
    }
  }

  /** What was sent of these chunks is dirty again: it may not have arrived. */
  #unsend({ block, chunks }: Batch): void {
    const { bitmap, pagesPerChunk } = must(this.#blocks[block], "a task names a block that exists");
    const sent = must(this.#sent[block], "every block has a record");
    const words = pagesPerChunk / PAGES_PER_WORD;
    for (const chunk of chunks) {
      undoWords(bitmap.words, chunk * words, sent.subarray(chunk * words, (chunk + 1) * words));
    }
  }

  async #tellTables(channel: SendChannel): Promise<void> {
    if (this.#scanned.size === 0) return;
    const tables = new Map(Array.from(this.#scanned, ([index, block]) => [index, block.tables]));
    await channel.run({ kind: "scan", tables });
  }

  /** A thread that fails puts back the bits that it took. One that died took them along. */
  #putBack({ block, chunks }: Batch): void {
    const { bitmap } = must(this.#blocks[block], "a task names a block that exists");
    for (const chunk of chunks) bitmap.fillChunk(chunk);
  }

  #channel(number: number): SendChannel {
    return must(this.#channels[number - 1], "a task goes to a bulk channel");
  }

  #totals(): ReturnType<typeof sumCounters> {
    return sumCounters(this.control, this.#channels.length + this.#lanes);
  }
}

function taskOf({ block, part, chunks }: Batch, round: number): SendTask {
  return { kind: "send", block, part, chunks, round };
}

/** Does it with each, and returns when all have ended; then it throws what the first threw. */
async function allOf<T, R>(
  all: readonly T[],
  work: (each: T, index: number) => Promise<R>,
): Promise<R[]> {
  const outcomes = await Promise.allSettled(all.map(work));
  return outcomes.map((outcome) => {
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  });
}
