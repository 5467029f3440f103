import { assert, must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { Checksum } from "../channels/checksum.ts";
import { type DescriptorOptions, readSome, writeAll } from "../channels/descriptor.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  corrupt,
  decodeHeader,
  encodeHeader,
  FRAMES,
  HEADER_BYTES,
  type Header,
  nextSequence,
  PAGES_HEAD_BYTES,
  PAYLOAD_BYTES_MAX,
  RUN_BYTES,
  RUNS_MAX,
  writeChecksum,
} from "../channels/frame.ts";
import type { Inbox } from "../channels/inbox.ts";
import {
  decodeFailure,
  decodeFence,
  encodeFence,
  encodeRequest,
  REQUEST_BYTES,
  type RequestMessage,
} from "../channels/messages.ts";
import type { Codec } from "./codecs/codec.ts";
import { letGo } from "./codecs/let-go.ts";
import { codecOf } from "./codecs/list.ts";
import { type Control, CounterRow, stopOf } from "./control.ts";
import type { PageEncoding, Run } from "./encodings/encoding.ts";
import { encodingOf } from "./encodings/list.ts";
import { raw } from "./encodings/raw.ts";
import { passGate } from "./gate.ts";
import { generationOf } from "./generation.ts";
import { GuestWriter } from "./guest-writer.ts";
import type { ChannelPlace, ReceiveSetup } from "./protocol.ts";
import { openRam, type Ram } from "./ram.ts";
import { Workbench } from "./workbench.ts";

/**
 * Read at a frame's edge: a header and a table of runs, and as little payload as possible, since
 * what is read here is copied once more while the rest goes straight into guest memory.
 */
const EDGE_BYTES = 4 * KIB;

/** The same where a channel is polled: most of its frames are a page, which is copied in any case. */
const POLLED_EDGE_BYTES = 16 * KIB;

/** The longest frame of a bulk channel or a lane. */
export const RECEIVED_BYTES_MAX = HEADER_BYTES + FRAMES.pages.bodyBytesMax;

/** Below this a copy is cheaper than a system call of its own. */
const DIRECT_BYTES_MIN = 32 * KIB;

interface DescribedRun extends Run {
  readonly encoding: PageEncoding;
  readonly bytes: number;
}

/** The checked head of a PAGES frame. */
interface RunTable {
  readonly writer: GuestWriter;
  readonly runs: readonly DescribedRun[];
  readonly headBytes: number;
  /** Of all runs together, once expanded. */
  readonly payloadBytes: number;
  readonly codec: Codec | null;
}

/** Receives one channel into guest memory. Lives in the thread that owns the channel. */
export class PageReceiver {
  readonly #input: DescriptorOptions;
  readonly #output: DescriptorOptions;
  readonly #hasChecksum: boolean;
  readonly #checksum: Checksum;
  readonly #control: Control;
  readonly #counters: CounterRow;
  readonly #rams: Ram[] = [];
  readonly #blocks: {
    readonly writer: GuestWriter;
    readonly pageBytes: number;
    readonly pageCount: number;
  }[] = [];
  /** When the last frame that `pollAll` received had begun to come. */
  polledMs = 0;
  /** Of the next frame. */
  readSequence: number;
  writeSequence: number;

  /** Whose bytes the buffer is, where the channel is polled. */
  readonly #inbox: Inbox | null;
  /** Bytes that were read and not used yet: from #start to #end. */
  readonly #buffer: Uint8Array;
  readonly #view: DataView;
  #start = 0;
  #end = 0;
  /** What goes the other way, one frame at a time. */
  readonly #reply = new Uint8Array(HEADER_BYTES + FRAMES.request.bodyBytesMax);
  readonly #replyView = new DataView(this.#reply.buffer);
  readonly #replyHeader = this.#reply.subarray(0, CHECKSUMMED_HEADER_BYTES);

  /** A channel that is polled comes with its inbox, for at least `RECEIVED_BYTES_MAX`. */
  constructor(
    setup: ReceiveSetup,
    place: ChannelPlace,
    checksum: Checksum,
    inbox: Inbox | null = null,
  ) {
    this.#inbox = inbox;
    this.#buffer = inbox?.bytes ?? new Uint8Array(RECEIVED_BYTES_MAX);
    this.#view = inbox?.view ?? new DataView(this.#buffer.buffer);
    const { control, channelTimeoutMs } = setup;
    const { channel, isDeep = false } = place;
    const common = { channel, isDeep, stop: stopOf(control, channel), limitMs: channelTimeoutMs };
    this.#control = control;
    this.#input = { ...common, fd: place.readFd };
    this.#output = { ...common, fd: place.writeFd };
    this.#hasChecksum = setup.hasChecksum;
    this.#checksum = checksum;
    this.#counters = new CounterRow(control, place.channel - 1);
    this.readSequence = place.readSequence;
    this.writeSequence = place.writeSequence;
    const bench = new Workbench();
    const { door } = setup;
    for (const [index, block] of setup.blocks.entries()) {
      const ram = openRam(block, "write");
      this.#rams.push(ram);
      const { pageBytes, pageCount } = block;
      this.#blocks.push({
        writer: new GuestWriter(
          {
            ...block,
            ram,
            channel: place.channel,
            door: door === undefined ? undefined : { door, block: index },
          },
          this.#counters,
          bench,
        ),
        pageBytes,
        pageCount,
      });
    }
  }

  /** Receives until END. Throws typed failures for whatever else the peer does. */
  receive(): void {
    for (;;) {
      const header = this.#readHeader();
      switch (header.name) {
        case "pages":
          passGate(this.#control);
          this.#receivePages(header);
          break;
        case "fence":
          this.#answerFence(decodeFence(this.#readBody(header), this.#input.channel));
          break;
        case "end":
          this.#readBody(header);
          return;
        case "failure":
          throw decodeFailure(this.#readBody(header), this.#input.channel, "source");
        default:
          throw new MigrationError("FRAME_UNEXPECTED", {
            channel: this.#input.channel,
            frame: header.name,
            wanted: "pages, fence or end",
          });
      }
    }
  }

  /** A lane's turn: all frames of which one has begun to come, without waiting for any to begin. */
  pollAll(): "nothing" | "pages" | "end" {
    let found = this.#poll();
    while (found === "pages" && this.#start !== this.#end) {
      if (this.#poll() === "end") found = "end";
    }
    return found;
  }

  #poll(): "nothing" | "pages" | "end" {
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = must(this.#inbox, "what is polled has an inbox").read(0, POLLED_EDGE_BYTES);
      if (this.#end === 0) return "nothing";
      this.#counters.add("movedBytes", this.#end);
    }
    this.polledMs = nowMs();
    const header = this.#readHeader();
    if (header.name === "pages") {
      this.#receivePages(header);
      return "pages";
    }
    const body = this.#readBody(header);
    if (header.name === "end") return "end";
    const { channel } = this.#input;
    if (header.name === "failure") throw decodeFailure(body, channel, "source");
    const facts = { channel, frame: header.name, wanted: "pages or end" };
    throw new MigrationError("FRAME_UNEXPECTED", facts);
  }

  /** Asks the source for a page, on a lane. */
  request(request: RequestMessage): void {
    encodeRequest(this.#replyView, HEADER_BYTES, request);
    this.#write("request", REQUEST_BYTES);
  }

  close(): void {
    for (const ram of this.#rams) ram.close();
  }

  #readHeader(): Header {
    this.#fill(HEADER_BYTES, true);
    const wanted = { channel: this.#input.channel, sequence: this.readSequence };
    const header = decodeHeader(this.#view, this.#start, wanted);
    if (this.#hasChecksum && !header.hasChecksum) {
      throw corrupt(this.#input.channel, "checksum", "missing");
    }
    this.readSequence = nextSequence(this.readSequence);
    return header;
  }

  /** The whole body, checked. What it returns is overwritten by the next read. */
  #readBody(header: Header): Uint8Array {
    this.#fill(HEADER_BYTES + header.length, false);
    const bodyAt = this.#start + HEADER_BYTES;
    const body = this.#buffer.subarray(bodyAt, bodyAt + header.length);
    this.#verify(header, body);
    this.#start = bodyAt + header.length;
    return body;
  }

  #verify(header: Header, body: Uint8Array): void {
    if (!header.hasChecksum) return;
    const covered = this.#buffer.subarray(this.#start, this.#start + CHECKSUMMED_HEADER_BYTES);
    if (this.#checksum.ofPair(covered, body) === header.checksum) return;
    const { channel } = this.#input;
    throw new MigrationError("CHECKSUM_MISMATCH", { channel, sequence: header.sequence });
  }

  #receivePages(header: Header): void {
    if (header.hasChecksum) {
      // Nothing of the frame is used before all of it is trusted.
      this.#fill(HEADER_BYTES + header.length, false);
      const bodyAt = this.#start + HEADER_BYTES;
      this.#verify(header, this.#buffer.subarray(bodyAt, bodyAt + header.length));
    }
    const table = this.#readTable(header);
    const { writer, runs, headBytes, codec } = table;
    writer.generation = generationOf(this.#input.channel, header.sequence);
    this.#start += HEADER_BYTES + headBytes;
    if (codec === null) this.#receiveRuns(runs, writer);
    else this.#receiveCompressed(header, table, codec);
    for (const { encoding, pages } of runs) {
      const isCompressed = encoding === raw && codec !== null;
      this.#counters.add(isCompressed ? "compressed" : encoding.counter, pages);
      this.#counters.add("pages", pages);
    }
  }

  #receiveRuns(runs: readonly DescribedRun[], writer: GuestWriter): void {
    for (const run of runs) {
      const isLong = run.encoding === raw && run.bytes >= DIRECT_BYTES_MIN;
      if (isLong && this.#readStraight(run, writer)) continue;
      this.#fill(run.bytes, false);
      run.encoding.decode(this.#buffer.subarray(this.#start, this.#start + run.bytes), run, writer);
      this.#start += run.bytes;
    }
  }

  /** Expands the payload, to just the bytes that the table announced, before anything is applied. */
  #receiveCompressed(
    header: Header,
    { writer, runs, headBytes, payloadBytes }: RunTable,
    codec: Codec,
  ): void {
    const { channel } = this.#input;
    const bytes = header.length - headBytes;
    this.#fill(bytes, false);
    const source = this.#buffer.subarray(this.#start, this.#start + bytes);
    const payload = codec.expand(source, payloadBytes);
    if (payload === null) throw corrupt(channel, `payload of codec "${codec.name}"`, bytes);
    this.#start += bytes;
    let at = 0;
    for (const run of runs) {
      run.encoding.decode(payload.subarray(at, at + run.bytes), run, writer);
      at += run.bytes;
    }
    letGo(payload);
  }

  /** Reads and checks the table of a PAGES frame, all of it, before any run is applied. */
  #readTable(header: Header): RunTable {
    const { channel } = this.#input;
    if (header.length < PAGES_HEAD_BYTES) throw corrupt(channel, "length of pages", header.length);
    this.#fill(HEADER_BYTES + PAGES_HEAD_BYTES, false);
    const headAt = this.#start + HEADER_BYTES;
    const blockNumber = this.#view.getUint32(headAt, true);
    const runCount = this.#view.getUint16(headAt + 4, true);
    const codecNumber = this.#view.getUint8(headAt + 6);
    const reserved = this.#view.getUint8(headAt + 7);
    const block = this.#blocks[blockNumber];
    if (block === undefined) throw corrupt(channel, "block", blockNumber);
    if (runCount === 0 || runCount > RUNS_MAX) throw corrupt(channel, "runs", runCount);
    const codec = codecNumber === 0 ? null : codecOf(codecNumber);
    if (codec === undefined) throw corrupt(channel, "codec", codecNumber);
    if (reserved !== 0) throw corrupt(channel, "reserved", reserved);
    const headBytes = PAGES_HEAD_BYTES + runCount * RUN_BYTES;
    if (header.length < headBytes) throw corrupt(channel, "length of pages", header.length);
    this.#fill(HEADER_BYTES + headBytes, false);

    const runs: DescribedRun[] = [];
    let payloadBytes = 0;
    const runsAt = this.#start + HEADER_BYTES + PAGES_HEAD_BYTES; // Reading on may have moved it.
    for (let index = 0; index < runCount; index += 1) {
      const run = this.#readRun(runsAt + index * RUN_BYTES, block);
      payloadBytes += run.bytes;
      runs.push(run);
    }
    const sentBytes = header.length - headBytes;
    const isWhole = codec === null ? sentBytes === payloadBytes : sentBytes < payloadBytes;
    if (payloadBytes > PAYLOAD_BYTES_MAX || !isWhole) {
      throw corrupt(channel, "payload bytes", payloadBytes);
    }
    return { writer: block.writer, runs, headBytes, payloadBytes, codec };
  }

  #readRun(at: number, block: { pageBytes: number; pageCount: number }): DescribedRun {
    const { channel } = this.#input;
    const firstPage = this.#view.getUint32(at, true);
    const pages = this.#view.getUint16(at + 4, true);
    const encodingNumber = this.#view.getUint8(at + 6);
    const reserved = this.#view.getUint8(at + 7);
    const bytes = this.#view.getUint32(at + 8, true);
    const encoding = encodingOf(encodingNumber);
    if (encoding === undefined) throw corrupt(channel, "encoding", encodingNumber);
    if (reserved !== 0) throw corrupt(channel, "reserved", reserved);
    if (pages === 0 || firstPage + pages > block.pageCount) {
      throw corrupt(channel, "pages beyond the block", firstPage + pages);
    }
    if (!encoding.isPayload(bytes, { pages, pageBytes: block.pageBytes })) {
      throw corrupt(channel, `bytes of a ${encoding.name} run`, bytes);
    }
    return { firstPage, pages, encoding, bytes };
  }

  /** Reads a raw run from the descriptor into guest memory, where this thread can address it. */
  #readStraight(run: DescribedRun, writer: GuestWriter): boolean {
    const buffered = Math.min(this.#end - this.#start, run.bytes);
    const target = buffered === run.bytes ? null : writer.view(run.firstPage, run.pages);
    if (target === null) return false;
    writer.begin(run.firstPage, run.pages);
    target.set(this.#buffer.subarray(this.#start, this.#start + buffered));
    this.#start += buffered;
    const rest = target.subarray(buffered);
    this.#read(rest, { least: rest.length, isIdle: false });
    writer.markReceived(run.firstPage, run.pages);
    return true;
  }

  #answerFence(number: number): void {
    const body = encodeFence(number);
    this.#reply.set(body, HEADER_BYTES);
    this.#write("fenced", body.length);
  }

  /** A frame whose body of so many bytes lies in the reply, behind its header. */
  #write(name: "fenced" | "request", length: number): void {
    const frame = this.#reply.subarray(0, HEADER_BYTES + length);
    const header = { name, sequence: this.writeSequence, length, hasChecksum: true };
    encodeHeader(this.#replyView, 0, header);
    const body = frame.subarray(HEADER_BYTES);
    writeChecksum(this.#replyView, 0, this.#checksum.ofPair(this.#replyHeader, body));
    this.writeSequence = nextSequence(this.writeSequence);
    writeAll(this.#output, frame);
  }

  /** Makes `bytes` bytes available from #start on. At a frame's edge it may wait for the first. */
  #fill(bytes: number, isEdge: boolean): void {
    const have = this.#end - this.#start;
    if (have >= bytes) return;
    assert(bytes <= this.#buffer.length, "a frame fits the buffer");
    this.#buffer.copyWithin(0, this.#start, this.#end);
    this.#start = 0;
    this.#end = have;
    if (this.#inbox !== null) {
      this.#fillPolled(bytes);
      return;
    }
    const room = this.#buffer.subarray(have, Math.max(bytes, EDGE_BYTES));
    this.#end += this.#read(room, { least: bytes - have, isIdle: isEdge && have === 0 });
  }

  /**
   * Just the bytes that are wanted: who polls leaves at the edge of a frame. A frame that has begun is whole
   * within the limit, however its bytes trickle in, for a vCPU may read it.
   */
  #fillPolled(bytes: number): void {
    const { channel, limitMs } = this.#input;
    while (this.#end < bytes) {
      const room = this.#buffer.subarray(this.#end, bytes);
      this.#end += this.#read(room, { least: 1, isIdle: false });
      if (this.#end < bytes && nowMs() - this.polledMs > limitMs) {
        throw new MigrationError("CHANNEL_STALLED", { channel, direction: "read", limitMs });
      }
    }
  }

  #read(target: Uint8Array, want: { least: number; isIdle: boolean }): number {
    const { bytes, waitedMs } = readSome(this.#input, target, want);
    this.#counters.add("movedBytes", bytes);
    this.#counters.add("waitMs", waitedMs);
    return bytes;
  }
}
