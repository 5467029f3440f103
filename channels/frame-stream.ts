import type { Socket } from "node:net";
import { assert } from "../base/assert.ts";
import { nowMs, within } from "../base/clock.ts";
import { MigrationError, type Origin, reasonOf } from "../base/errors.ts";
import type { Checksum } from "./checksum.ts";
import { type Connection, descriptorOf, stopReading } from "./connection.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  decodeHeader,
  encodeHeader,
  type FrameName,
  HEADER_BYTES,
  isOfMain,
  nextSequence,
  writeChecksum,
} from "./frame.ts";
import { decodeFailure } from "./messages.ts";

export interface Frame {
  readonly name: FrameName;
  readonly body: Uint8Array;
}

/** What a worker thread needs to go on where the stream stops. */
export interface ReleasedDescriptors {
  readonly readFd: number;
  readonly writeFd: number;
  readonly readSequence: number;
  readonly writeSequence: number;
  /** See `DescriptorOptions`. */
  readonly isDeep: boolean;
}

/** Frames received but not yet asked for; beyond this the peer is made to wait. */
const QUEUE_MAX = 32;

const NOTHING = new Uint8Array(0);

/** A peer that loses its connection again and again must not keep us for ever. */
const INTERRUPTIONS_MAX = 16;

/** A frame that is sent again should the peer not have it when it rejoins. */
interface LastingFrame {
  readonly name: FrameName;
  readonly body: Uint8Array;
  readonly sent: PromiseWithResolvers<void>;
}

/** What a connection in place of another need not repeat: it has its own. */
const PASSING: ReadonlySet<FrameName> = new Set(["hello", "welcome", "ping", "rejoin", "failure"]);

/**
 * Frames over a connection in the event loop: the main channel all its life, the others until they
 * are admitted and handed to a thread. Every frame here carries a checksum. The first failure ends
 * the stream; everyone who waits gets it, and everyone who comes later. But the loss of a connection
 * only interrupts a stream that may rejoin: it goes on, without a frame lost or doubled, once
 * another stream's connection has taken the place of the lost one.
 */
export class FrameStream {
  #connection: Connection;
  readonly #checksum: Checksum;
  readonly #peer: Origin;
  /** For messages; a destination learns it from HELLO. */
  channel: number;
  #readSequence = 0;
  #writeSequence = 0;
  #unread: Uint8Array = NOTHING;
  readonly #queue: Frame[] = [];
  readonly #notices = new Map<FrameName, (body: Uint8Array) => void>();
  #taker: { resolve(frame: Frame): void; reject(error: MigrationError): void } | null = null;
  #failure: MigrationError | null = null;
  #failed = Promise.withResolvers<never>();
  #isClosed = false;
  /** Called at a loss of the connection; null where that is the end. */
  #onInterruption: ((reason: MigrationError) => void) | null = null;
  /** Why there is no connection just now. */
  #interruption: MigrationError | null = null;
  #interruptions = 0;
  /** When another connection last took the place of a lost one, and who waits for that. */
  #joinedAtMs = Number.NEGATIVE_INFINITY;
  #joined = Promise.withResolvers<void>();
  /** All there were, in order: they are few and small, or their bytes are the host's own. */
  readonly #lasting: LastingFrame[] = [];
  #lastingReceived = 0;
  /** What the peer sends cannot be read any more, but it can still be told so. */
  #isUnreadable = false;
  /** The only frames that are let in before WELCOME, else FRAME_UNEXPECTED before any body is kept. */
  #admitted: readonly FrameName[] | null;
  /** When the last byte came and the last frame went, for the watch on a silent peer. */
  heardAtMs: number = nowMs();
  spokeAtMs: number = nowMs();
  sentBytes = 0;
  receivedBytes = 0;

  constructor(
    connection: Connection,
    options: { channel: number; checksum: Checksum; peer: Origin; admitted?: readonly FrameName[] },
  ) {
    this.#connection = connection;
    this.#checksum = options.checksum;
    this.#peer = options.peer;
    this.channel = options.channel;
    this.#admitted = options.admitted ?? null;
    this.#failed.promise.catch(() => {}); // Waiting for it is optional.
    this.#attach();
  }

  /** From now on the loss of a connection is told and is not the end, until `endRejoining`. */
  mayRejoin(onInterruption: (reason: MigrationError) => void): void {
    this.#onInterruption = onInterruption;
  }

  /** A loss is the end again, also one that is there already. */
  endRejoining(): void {
    this.#onInterruption = null;
    if (this.#interruption !== null) this.#fail(this.#interruption);
  }

  /** Nobody took the place of the connection that was lost for `reason`; `told` may know more. */
  giveUp(reason: MigrationError, told = reason): void {
    if (this.#interruption === reason) this.#fail(told);
  }

  /** What ended it. */
  get failure(): MigrationError | null {
    return this.#failure;
  }

  get mayBeRejoined(): boolean {
    return this.#onInterruption !== null && this.#failure === null;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  get isInterrupted(): boolean {
    return this.#interruption !== null;
  }

  /** Frames that the peer need not send again; see `adopt`. */
  get lastingReceived(): number {
    return this.#lastingReceived;
  }

  /** The connection is of no use any more: it is lost, or the peer says nothing. */
  interrupt(reason: MigrationError): void {
    if (this.#failure !== null || this.#interruption !== null) return;
    const told = this.#onInterruption;
    this.#interruptions += 1;
    if (told === null || this.#interruptions > INTERRUPTIONS_MAX) {
      this.#fail(reason);
      return;
    }
    this.#interruption = reason;
    this.#detach();
    this.#abandonConnection();
    this.#unread = NOTHING;
    told(reason);
  }

  /**
   * Goes on with the connection of `other`, a stream that is over with that. The peer has received
   * `peerReceived` of our lasting frames; it gets the others. Throws what ended either stream, and
   * FRAME_CORRUPT for a figure that cannot be.
   */
  adopt(other: FrameStream, peerReceived: number): void {
    if (this.#failure !== null) throw this.#failure;
    if (other.#failure !== null) throw other.#failure;
    if (peerReceived > this.#lasting.length) {
      const facts = { channel: this.channel, field: "received", found: peerReceived };
      throw new MigrationError("FRAME_CORRUPT", facts);
    }
    if (this.#interruption === null) {
      this.#detach();
      this.#abandonConnection();
    }
    this.#interruption = null;
    other.#detach();
    other.#isClosed = true;
    this.#connection = other.#connection;
    this.#readSequence = other.#readSequence;
    this.#writeSequence = other.#writeSequence;
    this.#unread = other.#unread;
    this.heardAtMs = nowMs();
    this.#attach();
    // Some may have arrived although the connection was lost before it said that they had gone.
    for (const { sent } of this.#lasting.slice(0, peerReceived)) sent.resolve();
    for (const frame of this.#lasting.slice(peerReceived)) this.#transmitLasting(frame);
    for (const frame of other.#queue.splice(0)) this.#accept(frame);
    this.#takeFrames();
    this.#joinedAtMs = nowMs();
    this.#joined.resolve();
    this.#joined = Promise.withResolvers<void>();
  }

  /**
   * Settles as `work` does, which waits for the peer, or throws what `late` makes when that takes
   * `limitMs`. Where the stream may rejoin, the limit is the peer's alone: time without a connection
   * is no part of it, and one over which nothing came for as long is given up as lost. A peer that was
   * heard at first and fell silent may be either, and is waited for until that is known: one that is
   * there says something several times meanwhile (`engine/heartbeat.ts`).
   */
  async within<T>(limitMs: number, work: Promise<T>, late: () => MigrationError): Promise<T> {
    let sinceMs = nowMs();
    let untilMs = sinceMs + limitMs;
    for (;;) {
      let lateness: MigrationError | null = null;
      try {
        return await within(untilMs - nowMs(), work, () => (lateness = late()));
      } catch (error) {
        if (lateness === null || error !== lateness || this.#onInterruption === null) throw error;
        if (this.#interruption === null && this.#joinedAtMs <= sinceMs) {
          const silentMs = nowMs() - Math.max(sinceMs, this.heardAtMs);
          if (silentMs < limitMs / 2) throw error;
          if (silentMs < limitMs) {
            untilMs = nowMs() + limitMs - silentMs;
            continue;
          }
          this.interrupt(lateness);
        }
        if (this.#interruption !== null) await Promise.race([this.#joined.promise, this.failed]);
        sinceMs = this.#joinedAtMs;
        untilMs = sinceMs + limitMs;
      }
    }
  }

  #attach(): void {
    const { reader, writer } = this.#connection;
    reader.on("data", this.#onData);
    reader.on("end", this.#onEnd);
    for (const socket of new Set<Socket>([reader, writer])) {
      socket.on("error", this.#onError);
      socket.on("close", this.#onEnd);
    }
    reader.resume();
  }

  #abandonConnection(): void {
    const { reader, writer } = this.#connection;
    for (const socket of [reader, writer]) socket.on("error", () => {});
    this.#connection.close();
  }

  /** Who said HELLO is known now: from here on every frame of its lane is let in. */
  admitAll(): void {
    this.#admitted = null;
  }

  /** Frames of that name are told as they come, whoever waits for others. What it throws ends the stream. */
  onNotice(name: FrameName, tell: (body: Uint8Array) => void): void {
    this.#notices.set(name, tell);
  }

  /** Rejects with what ended the stream. */
  get failed(): Promise<never> {
    return this.#failed.promise;
  }

  /** Sends a frame; settles when the operating system has taken it, within `limitMs`. */
  async send(name: FrameName, body: Uint8Array, limitMs: number): Promise<void> {
    const isFarewell = name === "failure" && this.#isUnreadable && !this.#isClosed;
    if (this.#failure !== null && !isFarewell) throw this.#failure;
    assert(!this.#isClosed, "a closed stream sends nothing");
    const facts = { channel: this.channel, direction: "write", limitMs } as const;
    const late = (): MigrationError => new MigrationError("CHANNEL_STALLED", facts);
    if (PASSING.has(name) || this.#onInterruption === null) {
      if (this.#interruption !== null) throw this.#interruption;
      return await within(limitMs, this.#transmit(name, body), late);
    }
    const lasting = { name, body, sent: Promise.withResolvers<void>() };
    lasting.sent.promise.catch(() => {}); // Whoever sent it may have gone.
    this.#lasting.push(lasting);
    if (this.#interruption === null) this.#transmitLasting(lasting);
    await this.within(limitMs, lasting.sent.promise, late);
  }

  #transmitLasting({ name, body, sent }: LastingFrame): void {
    // What fails to go is sent again, or rejected when the stream fails.
    this.#transmit(name, body).then(sent.resolve, () => {});
  }

  /** Settles when the operating system has taken the frame. */
  async #transmit(name: FrameName, body: Uint8Array): Promise<void> {
    const frame = new Uint8Array(HEADER_BYTES + body.length);
    const view = new DataView(frame.buffer);
    const header = { name, sequence: this.#writeSequence, length: body.length, hasChecksum: true };
    encodeHeader(view, 0, header);
    frame.set(body, HEADER_BYTES);
    writeChecksum(
      view,
      0,
      this.#checksum.ofPair(frame.subarray(0, CHECKSUMMED_HEADER_BYTES), body),
    );
    this.#writeSequence = nextSequence(this.#writeSequence);
    this.sentBytes += frame.length;
    this.spokeAtMs = nowMs();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#connection.writer.write(frame, (error) =>
      error ? reject(this.#lost(reasonOf(error))) : resolve(),
    );
    await promise;
  }

  /** The next frame, which must be one of `wanted`, within `limitMs`. Pings never show here. */
  async receive(wanted: readonly FrameName[], limitMs: number): Promise<Frame> {
    const late = () =>
      new MigrationError("PEER_SILENT", { waitingFor: wanted.join(" or "), limitMs });
    let frame: Frame;
    try {
      frame = await this.within(limitMs, this.#next(), late);
    } finally {
      this.#taker = null;
    }
    if (wanted.includes(frame.name)) return frame;
    throw new MigrationError("FRAME_UNEXPECTED", {
      channel: this.channel,
      frame: frame.name,
      wanted: wanted.join(" or "),
    });
  }

  /**
   * Hands the descriptors to a thread. The peer sends nothing before it is answered, so bytes that
   * are already here are a breach of the protocol: FRAME_UNEXPECTED. Throws what ended the stream
   * if anything did: its descriptors may be closed.
   */
  release(): ReleasedDescriptors {
    if (this.#failure !== null) throw this.#failure;
    const { reader, writer } = this.#connection;
    stopReading(reader);
    this.#detach();
    for (const socket of new Set<Socket>([reader, writer])) socket.on("error", () => {});
    if (this.#unread.length > 0 || this.#queue.length > 0 || reader.readableLength > 0) {
      throw new MigrationError("FRAME_UNEXPECTED", {
        channel: this.channel,
        frame: "early bytes",
        wanted: "silence",
      });
    }
    return {
      readFd: descriptorOf(reader),
      writeFd: descriptorOf(writer),
      readSequence: this.#readSequence,
      writeSequence: this.#writeSequence,
      isDeep: reader.remoteAddress !== undefined,
    };
  }

  /** Closes the connection. Whoever waits gets CHANNEL_LOST. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#fail(this.#lost("this end closed it"));
    if (this.#interruption !== null) return;
    this.#detach();
    this.#abandonConnection();
  }

  #next(): Promise<Frame> {
    assert(this.#taker === null, "one receiver waits at a time");
    const queued = this.#queue.shift();
    if (queued !== undefined) {
      if (this.#queue.length === QUEUE_MAX - 1) this.#connection.reader.resume();
      return Promise.resolve(queued);
    }
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const { promise, resolve, reject } = Promise.withResolvers<Frame>();
    this.#taker = { resolve, reject };
    return promise;
  }

  readonly #onData = (chunk: Uint8Array): void => {
    // Not a Buffer, whose slices are no copies: a short body would keep a whole chunk in memory.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    this.heardAtMs = nowMs();
    this.receivedBytes += bytes.length;
    if (this.#failure !== null) return; // What follows a failure is not kept: it has no limit.
    this.#unread = this.#unread.length === 0 ? bytes : joined(this.#unread, bytes);
    this.#takeFrames();
  };

  #takeFrames(): void {
    try {
      while (this.#failure === null && this.#takeFrame()) {}
    } catch (error) {
      assert(error instanceof MigrationError, "hostile bytes give typed failures only");
      this.#unread = NOTHING;
      this.#isUnreadable = true;
      this.#fail(error);
    }
    if (this.#queue.length >= QUEUE_MAX) this.#connection.reader.pause();
  }

  readonly #onEnd = (): void => this.interrupt(this.#lost("the other end closed it"));
  readonly #onError = (error: Error): void => this.interrupt(this.#lost(reasonOf(error)));

  #takeFrame(): boolean {
    const source = this.#unread;
    if (source.length < HEADER_BYTES) return false;
    const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
    const header = decodeHeader(view, 0, { channel: this.channel, sequence: this.#readSequence });
    if (!isOfMain(header.name) || !header.hasChecksum) {
      throw new MigrationError("FRAME_UNEXPECTED", {
        channel: this.channel,
        frame: header.name,
        wanted: "a control frame with a checksum",
      });
    }
    if (this.#admitted?.includes(header.name) === false) {
      const wanted = this.#admitted.join(" or ");
      throw new MigrationError("FRAME_UNEXPECTED", {
        channel: this.channel,
        frame: header.name,
        wanted,
      });
    }
    const size = HEADER_BYTES + header.length;
    if (source.length < size) return false;
    const body = source.slice(HEADER_BYTES, size);
    if (
      this.#checksum.ofPair(source.subarray(0, CHECKSUMMED_HEADER_BYTES), body) !== header.checksum
    ) {
      throw new MigrationError("CHECKSUM_MISMATCH", {
        channel: this.channel,
        sequence: header.sequence,
      });
    }
    this.#readSequence = nextSequence(this.#readSequence);
    this.#unread = source.subarray(size);
    // The destination may go on at once: on a busy machine its first ping is read along with this.
    if (header.name === "welcome") this.#admitted = null;
    this.#accept({ name: header.name, body });
    return true;
  }

  #accept(frame: Frame): void {
    if (frame.name === "ping") return;
    if (!PASSING.has(frame.name)) this.#lastingReceived += 1;
    const notice = this.#notices.get(frame.name);
    if (notice !== undefined) {
      notice(frame.body);
    } else if (frame.name === "failure") {
      this.#fail(decodeFailure(frame.body, this.channel, this.#peer));
    } else if (this.#taker !== null) {
      this.#taker.resolve(frame);
      this.#taker = null;
    } else {
      this.#queue.push(frame);
    }
  }

  #fail(error: MigrationError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.#failed.reject(error);
    for (const { sent } of this.#lasting) sent.reject(error);
    this.#taker?.reject(error);
    this.#taker = null;
  }

  #lost(reason: string): MigrationError {
    return new MigrationError("CHANNEL_LOST", { channel: this.channel, reason });
  }

  #detach(): void {
    const { reader, writer } = this.#connection;
    reader.off("data", this.#onData);
    reader.off("end", this.#onEnd);
    for (const socket of [reader, writer]) {
      socket.off("error", this.#onError);
      socket.off("close", this.#onEnd);
    }
  }
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
