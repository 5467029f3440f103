import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import { type DescriptorOptions, readSome, writeAll } from "../channels/descriptor.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  corrupt,
  decodeHeader,
  encodeHeader,
  type FrameName,
  HEADER_BYTES,
  nextSequence,
  PAGES_HEAD_BYTES,
  RUN_BYTES,
  writeChecksum,
} from "../channels/frame.ts";
import { decodeFailure, decodeFence, encodeFence } from "../channels/messages.ts";
import { CounterRow } from "./control.ts";
import { takeWords, undoWords } from "./dirty-words.ts";
import type { PageEncoding } from "./encodings/encoding.ts";
import { raw } from "./encodings/raw.ts";
import { zero } from "./encodings/zero.ts";
import { waitForPace } from "./pace.ts";
import type { ChannelPlace, SendBlock, SendSetup } from "./protocol.ts";
import { openRam, type Ram } from "./ram.ts";
import { PAGES_AT, PIECE_BYTES, PIECE_PAGES_MAX, Workbench } from "./workbench.ts";

/** Sends the pages of one channel's shard. Lives in the thread that owns the channel. */
export class PageSender {
  readonly #setup: SendSetup;
  readonly #counters: CounterRow;
  readonly #output: DescriptorOptions;
  readonly #input: DescriptorOptions;
  readonly #checksum: Checksum | null;
  readonly #rams: readonly Ram[];
  readonly #bench = new Workbench();
  #writeSequence: number;
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
    this.#output = { ...common, fd: place.writeFd };
    this.#input = { ...common, fd: place.readFd, limitMs: setup.fenceTimeoutMs };
    this.#checksum = checksum;
    this.#writeSequence = place.writeSequence;
    this.#readSequence = place.readSequence;
    this.#rams = setup.blocks.map((block) => openRam(block, "read"));
  }

  /**
   * Sends the dirty pages of `chunks` and returns how many went. When it throws, every bit that it
   * took is set again, also of pages that were written to the channel: nobody knows if they arrived.
   */
  send(blockIndex: number, chunks: readonly number[]): number {
    const block = must(this.#setup.blocks[blockIndex], "a task names a block that exists");
    const taken: { first: number; words: Int32Array }[] = [];
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

  /** Copies the dirty pages that `taken` names into the piece, once: all that follows is of the copy. */
  #stage(block: SendBlock, blockIndex: number, taken: { first: number; words: Int32Array }): void {
    const { pageBytes } = block;
    const capacity = Math.floor(PIECE_BYTES / pageBytes);
    const end = Math.min(block.pageCount, (taken.first + taken.words.length) * 32);
    const isDirty = (page: number): boolean =>
      page < end &&
      ((taken.words[(page >>> 5) - taken.first] as number) & (1 << (page & 31))) !== 0;
    for (let page = taken.first * 32; page < end; ) {
      if (!isDirty(page)) {
        const isWordClean = taken.words[(page >>> 5) - taken.first] === 0;
        page = isWordClean ? ((page >>> 5) + 1) * 32 : page + 1;
        continue;
      }
      if (this.#pages === capacity) this.#flush(block, blockIndex);
      const first = page;
      const room = capacity - this.#pages;
      while (page - first < room && isDirty(page)) {
        this.#pageNumbers[this.#pages + page - first] = page;
        page += 1;
      }
      const at = PAGES_AT + this.#pages * pageBytes;
      const target = this.#bench.bytes.subarray(at, at + (page - first) * pageBytes);
      must(this.#rams[blockIndex], "every block is open").read(first * pageBytes, target);
      this.#pages += page - first;
    }
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

    const headAt = PAGES_AT - PAGES_HEAD_BYTES - runs.length * RUN_BYTES;
    const { view } = this.#bench;
    view.setUint32(headAt, blockIndex, true);
    view.setUint16(headAt + 4, runs.length, true);
    view.setUint16(headAt + 6, 0, true);
    runs.forEach((run, index) => {
      const at = headAt + PAGES_HEAD_BYTES + index * RUN_BYTES;
      view.setUint32(at, run.firstPage, true);
      view.setUint16(at + 4, run.pages, true);
      view.setUint8(at + 6, run.encoding.number);
      view.setUint8(at + 7, 0);
      view.setUint32(at + 8, run.encoding === raw ? run.pages * pageBytes : 0, true);
    });
    this.#writeFrame("pages", headAt, PAGES_AT + rawPages * pageBytes - headAt);
    this.#counters.add("zero", zeroPages);
    this.#counters.add("raw", rawPages);
    this.#pages = 0;
  }

  /** Consecutive pages of one encoding, in the order of the piece. */
  #describeRuns(pages: number): { firstPage: number; pages: number; encoding: PageEncoding }[] {
    const { flags } = this.#bench;
    const runs: { firstPage: number; pages: number; encoding: PageEncoding }[] = [];
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

  /** Sends the body that lies in the workbench at `bodyAt`; the header goes right before it. */
  #writeFrame(name: FrameName, bodyAt: number, length: number): void {
    const at = bodyAt - HEADER_BYTES;
    assert(at >= 0, "a head fits before the pages");
    const { bytes, view } = this.#bench;
    const hasChecksum = this.#checksum !== null;
    encodeHeader(view, at, { name, sequence: this.#writeSequence, length, hasChecksum });
    if (this.#checksum !== null) {
      const header = bytes.subarray(at, at + CHECKSUMMED_HEADER_BYTES);
      const body = bytes.subarray(bodyAt, bodyAt + length);
      writeChecksum(view, at, this.#checksum.ofPair(header, body));
    }
    this.#writeSequence = nextSequence(this.#writeSequence);
    const frame = bytes.subarray(at, bodyAt + length);
    const { control } = this.#setup;
    const startMs = nowMs();
    const pacedMs = waitForPace(control.pacing, control.stop, frame.length);
    const waitedMs = writeAll(this.#output, frame);
    this.#counters.add("movedBytes", frame.length);
    this.#counters.add("sendMs", nowMs() - startMs);
    this.#counters.add("waitMs", pacedMs + waitedMs);
  }

  #writeControl(name: FrameName, body: Uint8Array): void {
    assert(this.#pages === 0, "no pages wait when a control frame goes");
    this.#bench.bytes.set(body, PAGES_AT);
    this.#writeFrame(name, PAGES_AT, body.length);
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

function wordsOfChunk(block: SendBlock, chunk: number): { first: number; words: Int32Array } {
  const wordsPerChunk = block.pagesPerChunk / 32;
  const first = chunk * wordsPerChunk;
  const count = Math.min(wordsPerChunk, Math.ceil(block.pageCount / 32) - first);
  assert(count > 0, "a task names chunks that exist");
  return { first, words: new Int32Array(count) };
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
