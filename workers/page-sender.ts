import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { Checksum } from "../channels/checksum.ts";
import { type DescriptorOptions, readSome } from "../channels/descriptor.ts";
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
import { CounterRow } from "./control.ts";
import { lowestBit, takeWords, undoWords } from "./dirty-words.ts";
import type { PageEncoding, Run } from "./encodings/encoding.ts";
import { raw } from "./encodings/raw.ts";
import { zero } from "./encodings/zero.ts";
import { FrameWriter } from "./frame-writer.ts";
import type { ChannelPlace, SendBlock, SendSetup } from "./protocol.ts";
import { openRam, type Ram } from "./ram.ts";
import { PAGES_AT, PIECE_BYTES, PIECE_PAGES_MAX, Workbench } from "./workbench.ts";

/** Below this a copy costs less than a frame of its own. */
const STRAIGHT_BYTES_MIN = 128 * KIB;

/** The dirty bits of a chunk's pages, taken from the bitmap: word 0 is the bitmap's word `first`. */
interface TakenWords {
  readonly first: number;
  readonly words: Int32Array;
}

interface EncodedRun extends Run {
  readonly encoding: PageEncoding;
}

/** Sends the pages of one channel's shard. Lives in the thread that owns the channel. */
export class PageSender {
  readonly #setup: SendSetup;
  readonly #counters: CounterRow;
  readonly #input: DescriptorOptions;
  readonly #checksum: Checksum | null;
  readonly #rams: readonly Ram[];
  readonly #bench = new Workbench();
  readonly #writer: FrameWriter;
  #readSequence: number;

  /** The pages in the piece by number, in the order in which they lie there. */
  readonly #pageNumbers = new Uint32Array(PIECE_PAGES_MAX);
  #pages = 0;

  constructor(setup: SendSetup, place: ChannelPlace, checksum: Checksum | null) {
    const { control, channelTimeoutMs } = setup;
    const { channel, isDeep = false } = place;
    const common = { channel, isDeep, stop: control.stop, limitMs: channelTimeoutMs };
    this.#setup = setup;
    this.#counters = new CounterRow(control, place.channel - 1);
    this.#input = { ...common, fd: place.readFd, limitMs: setup.fenceTimeoutMs };
    this.#checksum = checksum;
    this.#readSequence = place.readSequence;
    this.#writer = new FrameWriter(this.#bench, {
      output: { ...common, fd: place.writeFd },
      checksum,
      control,
      counters: this.#counters,
      sequence: place.writeSequence,
    });
    this.#rams = setup.blocks.map((block) => openRam(block, "read"));
  }

  /**
   * Sends the dirty pages of `chunks` and returns how many went. When it throws, every bit that it
   * took is set again, also of pages that were written to the channel: nobody knows if they arrived.
   */
  send(blockIndex: number, chunks: readonly number[]): number {
    const block = must(this.#setup.blocks[blockIndex], "a task names a block that exists");
    const taken: TakenWords[] = [];
    let pages = 0;
    try {
      for (const chunk of chunks) {
        const words = wordsOfChunk(block, chunk);
        taken.push(words);
        pages += takeWords(block.dirty, words.first, words.words);
        this.#stage(block, blockIndex, words);
      }
      this.#flush(block, blockIndex);
    } catch (error) {
      this.#pages = 0;
      for (const { first, words } of taken) undoWords(block.dirty, first, words);
      throw error;
    }
    this.#counters.add("pages", pages);
    return pages;
  }

  /** Returns when the destination has applied everything sent before. */
  fence(number: number): void {
    this.#writeControl("fence", encodeFence(number));
    const { channel } = this.#input;
    const { name, body } = this.#readAnswer();
    if (name === "failure") throw decodeFailure(body, channel, "destination");
    const answered = decodeFence(body, channel);
    if (answered !== number) throw corrupt(channel, "fence number", answered);
  }

  end(): void {
    this.#writeControl("end", new Uint8Array(0));
  }

  close(): void {
    for (const ram of this.#rams) ram.close();
  }

  /** Sends the dirty pages that `taken` names, or copies them into the piece, to go with others. */
  #stage(block: SendBlock, blockIndex: number, taken: TakenWords): void {
    const capacity = Math.floor(PIECE_BYTES / block.pageBytes);
    const end = Math.min(block.pageCount, (taken.first + taken.words.length) * 32);
    for (let page = taken.first * 32; ; ) {
      page = nextPage(taken, { from: page, end, isDirty: true });
      if (page === end) return;
      const runEnd = nextPage(taken, { from: page, end, isDirty: false });
      const run = { firstPage: page, pages: Math.min(runEnd - page, capacity) };
      // Less than a frame at the end of a chunk may go on in the next one.
      const mayGrow = runEnd === end && run.pages < capacity;
      const sent = mayGrow ? 0 : this.#sendStraight(block, blockIndex, run);
      page += sent > 0 ? sent : this.#copy(block, blockIndex, run);
    }
  }

  /**
   * Sends pages at the start of a run that show at first sight that they are not zero, from where
   * they are, and returns how many. A copy of our own would take a fifth of the thread's time, and
   * nobody looks at those bytes again: what is sent is what the system copies. 0: none are worth it.
   */
  #sendStraight(block: SendBlock, blockIndex: number, run: Run): number {
    const { pageBytes } = block;
    if (this.#checksum !== null || run.pages * pageBytes < STRAIGHT_BYTES_MIN) return 0;
    const ram = must(this.#rams[blockIndex], "every block is open");
    const bytes = ram.view(run.firstPage * pageBytes, run.pages * pageBytes);
    if (bytes === null) return 0;
    const pages = rawAtSight(bytes, pageBytes);
    if (pages * pageBytes < STRAIGHT_BYTES_MIN) return 0;
    const tableAt = this.#writeTable(block, blockIndex, [{ ...run, pages, encoding: raw }]);
    this.#writer.write("pages", tableAt, PAGES_AT, bytes.subarray(0, pages * pageBytes));
    this.#counters.add("raw", pages);
    return pages;
  }

  /** Copies pages of a run into the piece, once: all that follows is of the copy. Returns how many. */
  #copy(block: SendBlock, blockIndex: number, run: Run): number {
    const { pageBytes } = block;
    const capacity = Math.floor(PIECE_BYTES / pageBytes);
    if (this.#pages === capacity) this.#flush(block, blockIndex);
    const pages = Math.min(run.pages, capacity - this.#pages);
    const at = PAGES_AT + this.#pages * pageBytes;
    const target = this.#bench.bytes.subarray(at, at + pages * pageBytes);
    must(this.#rams[blockIndex], "every block is open").read(run.firstPage * pageBytes, target);
    for (let index = 0; index < pages; index += 1) {
      this.#pageNumbers[this.#pages + index] = run.firstPage + index;
    }
    this.#pages += pages;
    return pages;
  }

  /** Describes the pages of the piece in runs and sends them as one frame, with one write. */
  #flush(block: SendBlock, blockIndex: number): void {
    const pages = this.#pages;
    if (pages === 0) return;
    const { pageBytes } = block;
    const zeroPages = this.#bench.scanZero(pages, pageBytes);
    const runs = this.#describeRuns(pages);
    const rawPages = zeroPages === 0 ? pages : this.#bench.dropZero(pages, pageBytes);
    assert(rawPages + zeroPages === pages, "every page is zero or raw");

    const tableAt = this.#writeTable(block, blockIndex, runs);
    this.#writer.write("pages", tableAt, PAGES_AT + rawPages * pageBytes);
    this.#counters.add("zero", zeroPages);
    this.#counters.add("raw", rawPages);
    this.#pages = 0;
  }

  /** Writes the table of a PAGES frame so that it ends where the pages begin. Returns its place. */
  #writeTable(block: SendBlock, blockIndex: number, runs: readonly EncodedRun[]): number {
    const tableAt = PAGES_AT - PAGES_HEAD_BYTES - runs.length * RUN_BYTES;
    const { view } = this.#bench;
    view.setUint32(tableAt, blockIndex, true);
    view.setUint16(tableAt + 4, runs.length, true);
    view.setUint16(tableAt + 6, 0, true);
    let at = tableAt + PAGES_HEAD_BYTES;
    for (const { firstPage, pages, encoding } of runs) {
      view.setUint32(at, firstPage, true);
      view.setUint16(at + 4, pages, true);
      view.setUint8(at + 6, encoding.number);
      view.setUint8(at + 7, 0);
      view.setUint32(at + 8, encoding === raw ? pages * block.pageBytes : 0, true);
      at += RUN_BYTES;
    }
    return tableAt;
  }

  /** Consecutive pages of one encoding, in the order of the piece. */
  #describeRuns(pages: number): EncodedRun[] {
    const { flags } = this.#bench;
    const runs: EncodedRun[] = [];
    for (let first = 0; first < pages; ) {
      let next = first + 1;
      while (
        next < pages &&
        flags[next] === flags[first] &&
        this.#pageNumbers[next] === (this.#pageNumbers[next - 1] as number) + 1
      ) {
        next += 1;
      }
      const encoding = flags[first] === 1 ? zero : raw;
      runs.push({ firstPage: this.#pageNumbers[first] as number, pages: next - first, encoding });
      first = next;
    }
    return runs;
  }

  #writeControl(name: FrameName, body: Uint8Array): void {
    assert(this.#pages === 0, "no pages wait when a control frame goes");
    this.#bench.bytes.set(body, PAGES_AT);
    this.#writer.write(name, PAGES_AT, PAGES_AT + body.length);
  }

  #readAnswer(): { name: "fenced" | "failure"; body: Uint8Array } {
    const { channel } = this.#input;
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

function wordsOfChunk(block: SendBlock, chunk: number): TakenWords {
  const wordsPerChunk = block.pagesPerChunk / 32;
  const first = chunk * wordsPerChunk;
  const count = Math.min(wordsPerChunk, Math.ceil(block.pageCount / 32) - first);
  assert(count > 0, "a task names chunks that exist");
  return { first, words: new Int32Array(count) };
}

/** The first page from `from` on that is dirty, or that is not; `end` if none is before that. */
function nextPage(
  { first, words }: TakenWords,
  { from, end, isDirty }: { from: number; end: number; isDirty: boolean },
): number {
  for (let page = from; page < end; page += 32 - (page & 31)) {
    const word = words[(page >>> 5) - first] as number;
    const wanted = (isDirty ? word : ~word) >>> (page & 31);
    if (wanted !== 0) return Math.min(end, page + lowestBit(wanted));
  }
  return end;
}

/**
 * Pages before the first one that begins with zeros: that one may be zero, which the kernel tells
 * of a copy only. A page that is not zero now may be sent raw whatever becomes of it.
 */
function rawAtSight(bytes: Uint8Array, pageBytes: number): number {
  let at = 0;
  while (at < bytes.length && (bytes[at] !== 0 || bytes[at + 8] !== 0)) at += pageBytes;
  return at / pageBytes;
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
