import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import type { DescriptorOptions } from "../channels/descriptor.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  corrupt,
  decodeHeader,
  FRAMES,
  HEADER_BYTES,
  nextSequence,
  PAGES_HEAD_BYTES,
  RUN_BYTES,
} from "../channels/frame.ts";
import { type Inbox, openInbox } from "../channels/inbox.ts";
import { decodeFailure, decodeRequest, type RequestMessage } from "../channels/messages.ts";
import { type Control, CounterRow, stopOf, WAY_COUNTERS } from "./control.ts";
import { orBits } from "./dirty-words.ts";
import type { PageEncoding } from "./encodings/encoding.ts";
import { raw } from "./encodings/raw.ts";
import { zero } from "./encodings/zero.ts";
import { FrameWriter } from "./frame-writer.ts";
import { closeGate, openGate } from "./gate.ts";
import { Idleness, type Rest } from "./lane-idle.ts";
import { FINISH, OPEN } from "./lane-words.ts";
import { type Latencies, noteLatency } from "./latencies.ts";
import { Prefetch } from "./prefetch.ts";
import type { ChannelPlace, SendBlock, SendSetup } from "./protocol.ts";
import { openRam, type Ram } from "./ram.ts";
import { PAGES_AT, Workbench } from "./workbench.ts";

/** Sent between two looks for a request: what the next fault waits for at most. */
const PREFETCH_PAGES = 4;

/**
 * After a request bulk threads step aside for so long: the answer is under way with nothing behind it,
 * who waits is woken where a processor is free, and the next request often follows.
 */
const GATE_MS = 1;

interface OpenBlock extends SendBlock {
  readonly index: number;
  readonly ram: Ram;
  /** A bit per page that this lane has sent: it is on its way, and nothing can overtake it. */
  readonly sentHere: Uint32Array;
}

/** The source's end of a priority lane: pages that a guest waits for, and a few around them. */
export class LaneSender {
  readonly #control: Control;
  readonly #input: DescriptorOptions;
  readonly #inbox: Inbox;
  readonly #words: Int32Array;
  readonly #served: Latencies;
  readonly #checksum: Checksum | null;
  readonly #counters: CounterRow;
  readonly #bench = new Workbench();
  readonly #writer: FrameWriter;
  readonly #blocks: readonly OpenBlock[];
  readonly #requestsMax: number;
  readonly #prefetch = new Prefetch();
  readonly #idleness: Idleness;
  #bytes = 0;
  #sequence: number;
  #requests = 0;
  /** When the gate opens that this lane has closed; null while it has not. */
  #gateUntilMs: number | null = null;
  /** What is sent unasked while nobody asks, the next one last. */
  #unasked: { block: OpenBlock; pages: number[] } | null = null;

  constructor(
    setup: SendSetup,
    place: ChannelPlace,
    {
      words,
      served,
      checksum,
    }: { words: Int32Array; served: Latencies; checksum: Checksum | null },
  ) {
    const { control, channelTimeoutMs } = setup;
    const { channel, isDeep = false } = place;
    const common = { channel, isDeep, stop: stopOf(control, channel), limitMs: channelTimeoutMs };
    this.#control = control;
    this.#words = words;
    this.#served = served;
    this.#checksum = checksum;
    this.#counters = new CounterRow(control, channel - 1);
    this.#input = { ...common, fd: place.readFd };
    this.#inbox = openInbox(this.#input, HEADER_BYTES + FRAMES.failure.bodyBytesMax);
    this.#sequence = place.readSequence;
    this.#writer = new FrameWriter(this.#bench, {
      output: { ...common, fd: place.writeFd },
      checksum,
      control,
      counters: this.#counters,
      sequence: place.writeSequence,
      isLane: true,
    });
    this.#blocks = setup.blocks.map((block, index) => ({
      ...block,
      index,
      ram: openRam(block, "read"),
      sentHere: new Uint32Array(Math.ceil(block.pageCount / 32)),
    }));
    this.#idleness = new Idleness(this.#input.stop);
    this.#requestsMax = setup.blocks.reduce((sum, { pageCount }) => sum + pageCount, 0);
  }

  /** Serves until the coordinator says that nothing is left. */
  serve(): void {
    for (let rest = this.look(); rest !== "end"; rest = this.look()) this.rest(rest);
  }

  /**
   * One look of `serve`: does what is asked for, or may be next. Returns how to wait for the next look;
   * null where that is to follow at once.
   */
  look(): Rest | "end" | null {
    const request = this.#takeRequest();
    if (request !== null) {
      this.#idleness.wake();
      this.#answer(request);
      return null;
    }
    if (this.#unasked !== null) {
      this.#sendUnasked(this.#unasked);
      return null;
    }
    if (Atomics.load(this.#words, FINISH) !== 0) {
      this.#writer.write("end", PAGES_AT, PAGES_AT);
      return "end";
    }
    const isAsleep = Atomics.load(this.#words, OPEN) === 0;
    if (!isAsleep && this.#idleness.looksAgain()) return null;
    if (this.#gateUntilMs !== null && nowMs() >= this.#gateUntilMs) this.#openGate();
    const on = { words: this.#words, index: isAsleep ? OPEN : FINISH, value: 0 };
    return { on, isAsleep, isExpecting: true };
  }

  /** What `serve` does between two looks. */
  rest(rest: Rest | null): void {
    if (rest !== null) this.#counters.add("waitMs", this.#idleness.rest(rest));
  }

  close(): void {
    this.#openGate();
    for (const { ram } of this.#blocks) ram.close();
  }

  #answer({ block: index, page }: RequestMessage): void {
    const block = this.#blocks[index] as OpenBlock;
    const startMs = nowMs();
    if (this.#gateUntilMs === null) closeGate(this.#control);
    this.#gateUntilMs = startMs + GATE_MS;
    this.#sendIfDirty(block, page);
    this.#repeat(block, page);
    noteLatency(this.#served, nowMs() - startMs);
    const likely = this.#prefetch.fault(index, page);
    if (likely.length === 0) {
      this.#unasked = null;
      return;
    }
    const pages = likely.filter((each) => each >= 0 && each < block.pageCount).reverse();
    this.#unasked = pages.length === 0 ? null : { block, pages };
  }

  #openGate(): void {
    if (this.#gateUntilMs === null) return;
    this.#gateUntilMs = null;
    openGate(this.#control);
  }

  #sendUnasked({ block, pages }: { block: OpenBlock; pages: number[] }): void {
    for (const page of pages.splice(-PREFETCH_PAGES).reverse()) this.#sendIfDirty(block, page);
    if (pages.length === 0) this.#unasked = null;
  }

  /** Sends a page that nobody has sent: whoever takes its bit does. */
  #sendIfDirty(block: OpenBlock, page: number): void {
    const word = page >>> 5;
    const bit = 1 << (page & 31);
    if ((Atomics.and(block.dirty.words, word, ~bit) & bit) === 0) return;
    try {
      this.#sendPage(block, page);
    } catch (error) {
      orBits(block.dirty, word, bit); // Nobody knows whether it arrived.
      throw error;
    }
  }

  /**
   * Somebody else has taken the page, and it may lie behind megabytes in a buffer, or be held back by a
   * limit on bandwidth. Nobody writes it any more, so that it is the same twice, and the destination
   * places what comes first.
   */
  #repeat(block: OpenBlock, page: number): void {
    const sent = block.sentHere[page >>> 5] as number;
    if ((sent & (1 << (page & 31))) !== 0) return;
    this.#writePage(block, page);
    this.#counters.add("repeated", 1);
  }

  #sendPage(block: OpenBlock, page: number): void {
    const encoding = this.#writePage(block, page);
    this.#counters.add("pages", 1);
    this.#counters.add(encoding.counter, 1);
    if (encoding === zero) return;
    this.#counters.add(WAY_COUNTERS.raw.pages, 1);
    this.#counters.add(WAY_COUNTERS.raw.bytes, block.pageBytes);
  }

  #writePage({ index, ram, pageBytes, sentHere }: OpenBlock, page: number): PageEncoding {
    ram.read(page * pageBytes, this.#bench.piece(pageBytes));
    const encoding = this.#bench.scanZero(1, pageBytes) === 1 ? zero : raw;
    const bytes = encoding === zero ? 0 : pageBytes;
    const tableAt = PAGES_AT - PAGES_HEAD_BYTES - RUN_BYTES;
    const { view } = this.#bench;
    view.setUint32(tableAt, index, true);
    view.setUint16(tableAt + 4, 1, true);
    view.setUint16(tableAt + 6, 0, true);
    const runAt = tableAt + PAGES_HEAD_BYTES;
    view.setUint32(runAt, page, true);
    view.setUint16(runAt + 4, 1, true);
    view.setUint8(runAt + 6, encoding.number);
    view.setUint8(runAt + 7, 0);
    view.setUint32(runAt + 8, bytes, true);
    this.#writer.write("pages", tableAt, PAGES_AT + bytes);
    sentHere[page >>> 5] = (sentHere[page >>> 5] as number) | (1 << (page & 31));
    return encoding;
  }

  /** The next request, checked; null when none is there yet. */
  #takeRequest(): RequestMessage | null {
    if (this.#bytes < HEADER_BYTES && !this.#readMore(HEADER_BYTES)) return null;
    const { channel } = this.#input;
    const header = decodeHeader(this.#inbox.view, 0, { channel, sequence: this.#sequence });
    // Before its body is waited for, which may be longer than the inbox.
    const isOpen = Atomics.load(this.#words, OPEN) !== 0;
    if (header.name !== "failure" && !(header.name === "request" && isOpen)) {
      const wanted = isOpen ? "request" : "nothing before the guest runs there";
      throw new MigrationError("FRAME_UNEXPECTED", { channel, frame: header.name, wanted });
    }
    const end = HEADER_BYTES + header.length;
    if (this.#bytes < end && !this.#readMore(end)) return null;
    const { bytes } = this.#inbox;
    const body = bytes.subarray(HEADER_BYTES, end);
    if (this.#checksum !== null) {
      if (!header.hasChecksum) throw corrupt(channel, "checksum", "missing");
      const covered = bytes.subarray(0, CHECKSUMMED_HEADER_BYTES);
      if (this.#checksum.ofPair(covered, body) !== header.checksum) {
        throw new MigrationError("CHECKSUM_MISMATCH", { channel, sequence: header.sequence });
      }
    }
    if (header.name === "failure") throw decodeFailure(body, channel, "destination");
    const request = decodeRequest(body, channel, {
      blocks: this.#blocks,
      number: this.#requests,
    });
    this.#requests += 1;
    // Each page is asked for once, so more requests than pages are a flood.
    if (this.#requests > this.#requestsMax) throw corrupt(channel, "requests", this.#requests);
    this.#sequence = nextSequence(this.#sequence);
    this.#bytes = 0;
    return request;
  }

  /** Reads on until `bytes` are there, and never past them; false when they have not come yet. */
  #readMore(bytes: number): boolean {
    this.#bytes += this.#inbox.read(this.#bytes, bytes);
    return this.#bytes >= bytes;
  }
}
