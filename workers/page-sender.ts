import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { sameBytes } from "../base/same-bytes.ts";
import { KIB } from "../base/units.ts";
import type { Checksum } from "../channels/checksum.ts";
import { type DescriptorOptions, readSome, Stopped } from "../channels/descriptor.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  corrupt,
  decodeHeader,
  type FrameName,
  HEADER_BYTES,
  nextSequence,
  PAGES_HEAD_BYTES,
  RUN_BYTES,
} from "../channels/frame.ts";
import { decodeFailure, decodeFence, encodeFence } from "../channels/messages.ts";
import { letGo } from "./codecs/let-go.ts";
import { Compressor, type Memory } from "./compressor.ts";
import { type Control, CounterRow, isStopped, mustLeave, stopOf, WAY_COUNTERS } from "./control.ts";
import { DeltaCache, shardBytes } from "./delta-cache.ts";
import { DeltaChooser } from "./delta-chooser.ts";
import { type DescribedRun, Describer, type Description, type Versions } from "./describer.ts";
import { takeWords, undoWords } from "./dirty-words.ts";
import { delta } from "./encodings/delta.ts";
import type { Run } from "./encodings/encoding.ts";
import { raw } from "./encodings/raw.ts";
import { zero } from "./encodings/zero.ts";
import { FRAME_BYTES, type FrameBytes, FrameLength } from "./frame-length.ts";
import { FrameWriter } from "./frame-writer.ts";
import { faultsSoFar, isPostcopy } from "./gate.ts";
import { generationOf } from "./generation.ts";
import { markAll, markMapped } from "./page-map.ts";
import { PageScanner } from "./page-scanner.ts";
import { Piece, type TakenWords } from "./piece.ts";
import type {
  ChannelPlace,
  ScanPart,
  ScanTables,
  SendBlock,
  SendSetup,
  SendTask,
} from "./protocol.ts";
import { openRam, type Ram } from "./ram.ts";
import { CACHE_AT, PAGES_AT, Workbench } from "./workbench.ts";

/** Chunks of a block are fewer. */
const CHUNKS_MAX = 2 ** 32;

/** Below this a copy costs less than a frame of its own. */
const STRAIGHT_BYTES_MIN = 128 * KIB;

assert(
  FRAME_BYTES.awaited.straight >= STRAIGHT_BYTES_MIN,
  "a short frame is long enough to go straight",
);

/** What a run can count. */
const RUN_PAGES_MAX = 2 ** 16 - 1;

const ZEROS = new Uint8Array(STRAIGHT_BYTES_MIN);

type TaskOf<K extends SendTask["kind"]> = Extract<SendTask, { kind: K }>;

interface OpenBlock extends SendBlock {
  readonly index: number;
  readonly ram: Ram;
  readonly cache: DeltaCache | null;
}

/** Sends the pages of one channel's shard. Lives in the thread that owns the channel. */
export class PageSender {
  readonly #control: Control;
  readonly #stop: Int32Array;
  readonly #counters: CounterRow;
  readonly #writer: FrameWriter;
  readonly #input: DescriptorOptions;
  readonly #checksum: Checksum | null;
  readonly #channel: number;
  readonly #bench: Workbench;
  readonly #blocks: readonly OpenBlock[];
  /** By page size. */
  readonly #caches: ReadonlyMap<number, DeltaCache>;
  readonly #piece: Piece;
  readonly #scanner: PageScanner;
  /** By block, for those that are scanned. */
  #tables: ReadonlyMap<number, ScanTables> = new Map();
  readonly #describer: Describer;
  readonly #compressor: Compressor;
  readonly #deltas: DeltaChooser;
  readonly #xbzrle: boolean;
  #makesDeltas = false;
  #readSequence: number;
  #round = 0;
  readonly #frameLength = new FrameLength();
  /** What travels in one frame at the most. It grows shorter only where the piece is empty. */
  #frameBytes: FrameBytes = FRAME_BYTES.precopy;
  /** Zero pages that were found and not yet told: what follows them may be zero as well. */
  #zeros: { block: OpenBlock; firstPage: number; pages: number } | null = null;
  /** Chunks that the last `send` did not begin, at the end of its list. */
  left = 0;

  constructor(setup: SendSetup, place: ChannelPlace, checksum: Checksum | null) {
    const { control, channelTimeoutMs, fenceTimeoutMs, cacheBytes, xbzrle } = setup;
    const { channel, isDeep = false } = place;
    const stop = stopOf(control, channel);
    const common = { channel, isDeep, stop };
    this.#control = control;
    this.#channel = channel;
    this.#xbzrle = xbzrle;
    this.#stop = stop;
    this.#counters = new CounterRow(control, channel - 1);
    this.#input = { ...common, fd: place.readFd, limitMs: fenceTimeoutMs };
    this.#checksum = checksum;
    this.#readSequence = place.readSequence;
    this.#bench = new Workbench(cacheBytes);
    this.#writer = new FrameWriter(this.#bench, {
      output: { ...common, fd: place.writeFd, limitMs: channelTimeoutMs },
      checksum,
      control,
      counters: this.#counters,
      sequence: place.writeSequence,
    });
    this.#piece = new Piece(this.#bench);
    this.#scanner = new PageScanner(this.#bench, this.#piece, this.#counters);
    this.#describer = new Describer(this.#bench, this.#counters);
    this.#compressor = new Compressor(control, this.#counters);
    this.#deltas = new DeltaChooser(this.#compressor, this.#counters);
    this.#caches = makeCaches(this.#bench, setup);
    this.#blocks = setup.blocks.map((block, index) => {
      const cache = this.#caches.get(block.pageBytes) ?? null;
      return { ...block, index, ram: openRam(block, "read"), cache };
    });
  }

  /** From now on the blocks that `tables` names are scanned. */
  scan(tables: ReadonlyMap<number, ScanTables>): void {
    this.#tables = tables;
  }

  /** Finds out which pages are mapped; see `SendTask`. */
  look({ block: blockIndex, file, regions, firstWord, words }: TaskOf<"look">): number {
    const { ram, pageBytes, pageCount } = must(this.#blocks[blockIndex], "a task has a block");
    const mapped = must(this.#tables.get(blockIndex)?.mapped, "what is looked at has a table");
    const startMs = nowMs();
    const span = { mapped, firstWord, words, pageBytes, pageCount };
    const { pages, readBytes } = ram.isIn(file)
      ? markMapped(span, regions, this.#bench)
      : markAll(span);
    this.#counters.add("scannedBytes", readBytes);
    this.#counters.add("scanMs", nowMs() - startMs);
    return pages;
  }

  /**
   * Sends the dirty pages of `chunks`, and those that a scan finds changed, and returns how many
   * went; in a hurry some chunks are left as they are. When it throws, they are dirty: every bit that
   * it took is set again, also of pages that were written to the channel, for nobody knows if they
   * arrived.
   */
  send(
    blockIndex: number,
    chunks: readonly number[],
    round: number,
    part: ScanPart = "all",
  ): number {
    const block = must(this.#blocks[blockIndex], "a task names a block that exists");
    const flush = (): void => this.#flush(block);
    const sendStraight = (run: Run): number => this.#sendStraight(block, run);
    const tables = this.#tables.get(blockIndex);
    const taken: TakenWords[] = [];
    let pages = 0;
    let before = -1;
    this.#round = round;
    this.#deltas.begin();
    this.left = chunks.length;
    try {
      for (const chunk of chunks) {
        if (isStopped(this.#stop)) throw new Stopped();
        if (mustLeave(this.#stop)) break;
        assert(chunk > before, "chunks rise, and so do the pages of a piece");
        before = chunk;
        this.left -= 1;
        this.#counters.add("chunks", 1);
        this.#chooseFrameLength(flush);
        this.#chooseDeltas();
        this.#own(block, chunk);
        const words = wordsOfChunk(block, chunk);
        taken.push(words);
        const marked = takeWords(block.dirty, words.first, words.words);
        if (tables === undefined) {
          this.#piece.stage(words, block, {
            flush,
            sendStraight,
            pieceBytes: this.#frameBytes.piece,
          });
          pages += marked;
        } else {
          pages += this.#scanner.stage(words, block, { tables, part, flush });
        }
        block.sent.set(words.words, words.first);
      }
      flush();
      this.#tellZeros();
    } catch (error) {
      this.#piece.pages = 0;
      this.#zeros = null;
      // Nobody knows which versions arrived, of this block and of those before it.
      this.#forgetVersions();
      for (const { first, words } of taken) undoWords(block.dirty, first, words);
      throw error;
    }
    this.#counters.add("pages", pages);
    return pages;
  }

  /**
   * What another channel sent last is unknown here: versions that the cache has of it are not those
   * that the destination has, and a delta against them would be refused.
   */
  #own(block: OpenBlock, chunk: number): void {
    const { senders, pagesPerChunk, pageCount } = block;
    if (senders[chunk] === this.#channel) return;
    senders[chunk] = this.#channel;
    const first = chunk * pagesPerChunk;
    forget(block, first, Math.min(pagesPerChunk, pageCount - first));
  }

  /** Returns when the destination has applied everything sent before. */
  fence(number: number): void {
    this.#writeControl("fence", encodeFence(number));
    const { name, body } = this.#readAnswer();
    if (name === "failure") throw decodeFailure(body, this.#channel, "destination");
    const answered = decodeFence(body, this.#channel);
    if (answered !== number) throw corrupt(this.#channel, "fence number", answered);
  }

  end(): void {
    this.#writeControl("end", new Uint8Array(0));
  }

  close(): void {
    for (const { ram } of this.#blocks) ram.close();
  }

  /** Describes the pages of the piece and sends them as one frame. */
  #flush(block: OpenBlock): void {
    const { pages, pageNumbers } = this.#piece;
    if (pages === 0) return;
    const memory = this.#memoryOf(block, pageNumbers[0] as number);
    const cache = this.#cacheFor(block, memory);
    const description = this.#describe(block, memory, cache);
    this.#piece.pages = 0;
    if (description.runs.length > 0) this.#sendPages(block, description, memory);
  }

  #describe(block: OpenBlock, memory: Memory, cache: DeltaCache | null): Description {
    const versions = cache === null ? null : this.#versionsIn(cache, block);
    const startMs = nowMs();
    const description = this.#describer.describe(this.#piece, block.pageBytes, versions);
    const pageBytes = (this.#piece.pages - description.zeroPages) * block.pageBytes;
    this.#deltas.described(pageBytes);
    if (cache !== null) {
      this.#deltas.compared(memory, description, { pageBytes, ms: nowMs() - startMs });
    } else if (block.cache !== null && this.#makesDeltas) this.#forgetPiece(block);
    return description;
  }

  /** The cache, if pages are to be compared with what it has of them. */
  #cacheFor({ cache }: OpenBlock, memory: Memory): DeltaCache | null {
    if (cache === null || !this.#makesDeltas) return null;
    return this.#deltas.mayTry(memory) ? cache : null;
  }

  #versionsIn(cache: DeltaCache, { firstKey }: OpenBlock): Versions {
    const generation = generationOf(this.#channel, this.#writer.sequence);
    const tellsUnchanged = isPostcopy(this.#control);
    return { cache, firstKey, round: this.#round, generation, tellsUnchanged };
  }

  /** The pages of the piece go without being remembered. */
  #forgetPiece(block: OpenBlock): void {
    const { pages, pageNumbers } = this.#piece;
    for (let page = 0; page < pages; page += 1) forget(block, pageNumbers[page] as number, 1);
    this.#counters.add("deltaMisses", pages);
    this.#deltas.passedOver(pages);
  }

  #sendPages(
    block: OpenBlock,
    { runs, payloadBytes, rawPages }: Description,
    memory: Memory,
  ): void {
    const { bytes } = this.#bench;
    const payload = bytes.subarray(PAGES_AT, PAGES_AT + payloadBytes);
    const compressed = this.#compressor.compress(payload, memory);
    const sentBytes = compressed?.bytes.length ?? payloadBytes;
    if (compressed !== null) {
      bytes.set(compressed.bytes, PAGES_AT);
      letGo(compressed.bytes);
    }
    this.#counters.add(compressed === null ? "raw" : "compressed", rawPages);
    this.#countWays(runs, compressed === null ? null : sentBytes);

    const tableAt = this.#writeTable(block, runs, compressed?.codec.number ?? 0);
    const bodyEnd = PAGES_AT + sentBytes;
    const write = this.#writer.write("pages", tableAt, bodyEnd);
    this.#deltas.sent({ payloadBytes, wireBytes: bodyEnd - tableAt, write });
  }

  /** `compressedBytes`: what became of all of them together, or null if nothing. */
  #countWays(runs: readonly DescribedRun[], compressedBytes: number | null): void {
    for (const { encoding, pages, bytes } of runs) {
      if (encoding === zero) continue;
      const alone = encoding === delta ? WAY_COUNTERS.delta : WAY_COUNTERS.raw;
      const way = compressedBytes === null ? alone : WAY_COUNTERS.codec;
      this.#counters.add(way.pages, pages);
      if (compressedBytes === null) this.#counters.add(way.bytes, bytes);
    }
    if (compressedBytes !== null) this.#counters.add(WAY_COUNTERS.codec.bytes, compressedBytes);
  }

  /**
   * Sends pages at the start of a run from where they are, and returns how many: without a copy of
   * our own, which is worth it for many at once only. 0: none can go so.
   */
  #sendStraight(block: OpenBlock, run: Run): number {
    const { pageBytes, ram } = block;
    if (run.pages * pageBytes < STRAIGHT_BYTES_MIN) return 0;
    const bytes = ram.view(run.firstPage * pageBytes, run.pages * pageBytes);
    if (bytes === null) return 0;
    return this.#sendZeros(block, run, bytes) || this.#sendRaw(block, run, bytes);
  }

  /**
   * Zeros are told by comparing where they lie, in half of the time that a copy takes. Should the
   * guest write meanwhile, its page was zero before, and is dirty after.
   */
  #sendZeros(block: OpenBlock, { firstPage }: Run, bytes: Uint8Array): number {
    const { pageBytes } = block;
    const zeroPages = Math.floor(zerosAtOnce(bytes) / pageBytes);
    const pages = this.#strangers(block, firstPage, Math.min(zeroPages, RUN_PAGES_MAX));
    if (pages === 0) return 0;
    this.#passOver(block, { firstPage, pages }, { hasContent: false });
    const before = this.#zeros;
    const isNext = before?.block === block && before.firstPage + before.pages === firstPage;
    if (isNext && before.pages + pages <= RUN_PAGES_MAX) {
      before.pages += pages;
    } else {
      this.#tellZeros();
      this.#zeros = { block, firstPage, pages };
    }
    // A guest may wait for one of them, and a link may be slow.
    if (isPostcopy(this.#control)) this.#tellZeros();
    return pages;
  }

  /** One frame for a stretch of zeros, however many chunks it spans: there is little else to do. */
  #tellZeros(): void {
    if (this.#zeros === null) return;
    const { block, firstPage, pages } = this.#zeros;
    this.#zeros = null;
    const tableAt = this.#writeTable(block, [{ firstPage, pages, encoding: zero, bytes: 0 }], 0);
    const write = this.#writer.write("pages", tableAt, PAGES_AT);
    this.#deltas.sent({ payloadBytes: 0, wireBytes: PAGES_AT - tableAt, write });
    this.#counters.add("zero", pages);
  }

  /**
   * Pages that show at first sight that they are not zero. A copy of our own would take a fifth of
   * the thread's time, and nobody looks at those bytes again: what is sent is what the system copies.
   * Not where something is to be said of the bytes (a checksum, a version, a compressed form), which
   * must then be of a copy that stays.
   */
  #sendRaw(block: OpenBlock, { firstPage }: Run, all: Uint8Array): number {
    const { pageBytes } = block;
    if (this.#checksum !== null) return 0;
    const bytes = all.subarray(0, Math.floor(this.#frameBytes.straight / pageBytes) * pageBytes);
    const pages = this.#strangers(block, firstPage, rawAtSight(bytes, pageBytes));
    const sentBytes = pages * pageBytes;
    if (sentBytes < STRAIGHT_BYTES_MIN) return 0;
    if (this.#compressor.takes(sentBytes, this.#memoryOf(block, firstPage))) return 0;
    const run = { firstPage, pages, encoding: raw, bytes: sentBytes };
    const tableAt = this.#writeTable(block, [run], 0);
    const write = this.#writer.write("pages", tableAt, PAGES_AT, bytes.subarray(0, sentBytes));
    const wireBytes = PAGES_AT - tableAt + sentBytes;
    this.#deltas.described(sentBytes);
    this.#deltas.sent({ payloadBytes: sentBytes, wireBytes, write });
    this.#counters.add("raw", pages);
    this.#countWays([run], null);
    this.#passOver(block, { firstPage, pages }, { hasContent: true });
    return pages;
  }

  #chooseFrameLength(flush: () => void): void {
    const frameBytes = this.#frameLength.next({
      isPostcopy: isPostcopy(this.#control),
      faults: faultsSoFar(this.#control),
      nowMs: nowMs(),
    });
    // What was staged for a long frame would not fit a short one.
    if (frameBytes.piece < this.#frameBytes.piece) flush();
    this.#frameBytes = frameBytes;
  }

  /** Where only `auto` wants deltas, they end with it. What is sent without them is not remembered. */
  #chooseDeltas(): void {
    const before = this.#makesDeltas;
    this.#makesDeltas = this.#xbzrle || this.#compressor.isAuto;
    if (before && !this.#makesDeltas) this.#forgetVersions();
  }

  #forgetVersions(): void {
    for (const cache of this.#caches.values()) cache.clear();
  }

  /** Pages that go as they are, past the cache. */
  #passOver(
    block: OpenBlock,
    { firstPage, pages }: Run,
    { hasContent }: { hasContent: boolean },
  ): void {
    if (block.cache === null || !this.#makesDeltas) return;
    forget(block, firstPage, pages);
    this.#counters.add("deltaMisses", pages);
    if (!this.#deltas.mayTry(this.#memoryOf(block, firstPage))) this.#deltas.passedOver(pages);
    else if (hasContent && block.cache.isCrowded(this.#round)) {
      this.#counters.add("deltaRefusals", pages);
    }
  }

  /** Pages before the first one that the cache has a version of, or would remember. */
  #strangers(block: OpenBlock, firstPage: number, pages: number): number {
    const { firstKey } = block;
    const cache = this.#cacheFor(block, this.#memoryOf(block, firstPage));
    if (cache === null || !cache.isOpen(this.#round)) return pages;
    let count = 0;
    while (count < pages && !cache.wants(firstKey + firstPage + count, this.#round)) count += 1;
    return count;
  }

  /** What a compressor is told of memory: the chunk, of which there is one in all blocks. */
  #memoryOf(block: OpenBlock, page: number): Memory {
    const chunk = Math.floor(page / block.pagesPerChunk);
    return { chunk: block.index * CHUNKS_MAX + chunk, round: this.#round };
  }

  /** Writes the head of a PAGES frame so that it ends where the payload begins. Returns its place. */
  #writeTable(block: OpenBlock, runs: readonly DescribedRun[], codec: number): number {
    const tableAt = PAGES_AT - PAGES_HEAD_BYTES - runs.length * RUN_BYTES;
    const { view } = this.#bench;
    view.setUint32(tableAt, block.index, true);
    view.setUint16(tableAt + 4, runs.length, true);
    view.setUint8(tableAt + 6, codec);
    view.setUint8(tableAt + 7, 0);
    let at = tableAt + PAGES_HEAD_BYTES;
    for (const { firstPage, pages, encoding, bytes } of runs) {
      view.setUint32(at, firstPage, true);
      view.setUint16(at + 4, pages, true);
      view.setUint8(at + 6, encoding.number);
      view.setUint8(at + 7, 0);
      view.setUint32(at + 8, bytes, true);
      at += RUN_BYTES;
    }
    return tableAt;
  }

  #writeControl(name: FrameName, body: Uint8Array): void {
    this.#bench.bytes.set(body, PAGES_AT);
    this.#writer.write(name, PAGES_AT, PAGES_AT + body.length);
  }

  #readAnswer(): { name: "fenced" | "failure"; body: Uint8Array } {
    const channel = this.#channel;
    const head = new Uint8Array(HEADER_BYTES);
    this.#read(head);
    const wanted = { channel, sequence: this.#readSequence };
    const header = decodeHeader(new DataView(head.buffer), 0, wanted);
    const { name } = header;
    if (name !== "fenced" && name !== "failure") {
      throw new MigrationError("FRAME_UNEXPECTED", { channel, frame: name, wanted: "fenced" });
    }
    this.#readSequence = nextSequence(this.#readSequence);
    const body = new Uint8Array(header.length);
    this.#read(body);
    if (this.#checksum !== null) {
      if (!header.hasChecksum) throw corrupt(channel, "checksum", "missing");
      const covered = head.subarray(0, CHECKSUMMED_HEADER_BYTES);
      if (this.#checksum.ofPair(covered, body) !== header.checksum) {
        const { sequence } = header;
        throw new MigrationError("CHECKSUM_MISMATCH", { channel, sequence });
      }
    }
    return { name, body };
  }

  #read(target: Uint8Array): void {
    if (target.length === 0) return;
    const { waitedMs } = readSome(this.#input, target, { least: target.length, isIdle: false });
    this.#counters.add("waitMs", waitedMs);
  }
}

/** What is sent of these pages is not remembered, so a version before it must not be either. */
function forget({ cache, firstKey }: OpenBlock, firstPage: number, pages: number): void {
  if (cache === null) return;
  for (let page = firstPage; page < firstPage + pages; page += 1) cache.forget(firstKey + page);
}

/** A cache for each page size there is, by its share of the memory. */
function makeCaches(
  bench: Workbench,
  { blocks, cacheBytes, channels }: SendSetup,
): Map<number, DeltaCache> {
  const caches = new Map<number, DeltaCache>();
  const share = Math.min(1, cacheBytes / shardBytes(blocks, channels));
  let at = CACHE_AT;
  for (const pageBytes of new Set(blocks.map((block) => block.pageBytes))) {
    const ofSize = blocks.filter((block) => block.pageBytes === pageBytes);
    const shardPages = shardBytes(ofSize, channels) / pageBytes;
    const slots = Math.floor(shardPages * share);
    if (slots === 0) continue;
    const pagesPerChunk = ofSize[0]?.pagesPerChunk ?? 1;
    const size = { slots, shardPages, pageBytes, pagesPerChunk, channels };
    caches.set(pageBytes, new DeltaCache({ bytes: bench.bytes, at }, size));
    at += slots * pageBytes;
  }
  return caches;
}

function wordsOfChunk(block: SendBlock, chunk: number): TakenWords {
  const wordsPerChunk = block.pagesPerChunk / 32;
  const first = chunk * wordsPerChunk;
  const count = Math.min(wordsPerChunk, Math.ceil(block.pageCount / 32) - first);
  return { first, words: new Int32Array(Math.max(0, count)) };
}

/**
 * Pages before the first one that begins with zeros: that one may be zero, which the kernel tells
 * of a copy only. A page that is not zero now may be sent raw whatever becomes of it.
 *
 * It is a wait for memory, once a page: several pages are asked for before any of them decides
 * anything, so that they are fetched together.
 */
function rawAtSight(bytes: Uint8Array, pageBytes: number): number {
  let at = 0;
  for (const last = bytes.length - 4 * pageBytes; at <= last; at += 4 * pageBytes) {
    const first = firstBytes(bytes, at);
    const second = firstBytes(bytes, at + pageBytes);
    const third = firstBytes(bytes, at + 2 * pageBytes);
    const fourth = firstBytes(bytes, at + 3 * pageBytes);
    if (first === 0 || second === 0 || third === 0 || fourth === 0) break;
  }
  while (at < bytes.length && firstBytes(bytes, at) !== 0) at += pageBytes;
  return at / pageBytes;
}

/** Two bytes of a page's beginning, in one: 0 if both are. */
function firstBytes(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) | (bytes[at + 8] as number);
}

/** Bytes of zeros at the start, in steps of so many that one comparison is quick. */
function zerosAtOnce(bytes: Uint8Array): number {
  let at = 0;
  while (at + ZEROS.length <= bytes.length && bytes[at] === 0 && bytes[at + 8] === 0) {
    if (!sameBytes(bytes.subarray(at, at + ZEROS.length), ZEROS)) break;
    at += ZEROS.length;
  }
  return at;
}

/** Runs `work` and books the thread's time on the channel. */
export function booked<T>(counters: CounterRow, work: () => T): T {
  const startMs = nowMs();
  const waitMsBefore = counters.read("waitMs");
  const cpuBefore = process.threadCpuUsage();
  try {
    return work();
  } finally {
    const cpu = process.threadCpuUsage(cpuBefore);
    counters.add("cpuMs", (cpu.user + cpu.system) / 1000);
    counters.add("busyMs", nowMs() - startMs - (counters.read("waitMs") - waitMsBefore));
  }
}
