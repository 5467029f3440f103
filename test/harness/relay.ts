import { connect, createServer, type Server, type Socket } from "node:net";
import { assert } from "../../base/assert.ts";
import { parseAddress } from "../../channels/address.ts";
import { type FrameName, HEADER_BYTES } from "../../channels/frame.ts";
import { FrameSplitter, type PassingFrame } from "./frame-splitter.ts";

/** A point in the traffic of one channel: in front of, within or behind the nth such frame. */
export interface Point {
  readonly channel: number;
  readonly frame: FrameName;
  /** Counts from 1. */
  readonly nth?: number;
  /** A number is so many bytes into it, or behind it where it is shorter. */
  readonly where: "before" | "middle" | "after" | number;
}

/** What happens there. A link is all channels of the migration. */
export type Deed = "cut" | "cut link" | "stall" | "stall link" | "flip a bit";

/** Where a HELLO names its channel. */
const HELLO_CHANNEL_AT = HEADER_BYTES + 20;

/**
 * Stands between the two hosts and breaks the link at chosen frames. Everything is forwarded frame
 * by frame and in order, so what has passed when a deed is done is certain. Single use: the
 * migration after a fault goes without it.
 */
export class Relay implements AsyncDisposable {
  readonly #server: Server;
  readonly #incidents: {
    point: Point;
    deed: Deed | (() => void);
    onDone: () => void;
    seen: number;
  }[] = [];
  readonly #forgeries: {
    channel: number;
    frame: FrameName;
    forged: (bytes: Buffer) => Buffer;
  }[] = [];
  readonly #channels: RelayedChannel[] = [];
  #target = "";
  /** Whether a channel that was cut may come back by another connection. */
  isMended = false;
  /** Called when a planned deed was done. */
  onDeed: () => void = () => {};

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (socket) => this.#relay(socket));
  }

  static async start(): Promise<Relay> {
    const server = createServer({ pauseOnConnect: true, noDelay: true });
    const { promise, resolve } = Promise.withResolvers<void>();
    server.listen({ host: "127.0.0.1", port: 0 }, resolve);
    await promise;
    return new Relay(server);
  }

  /** What the source connects to, instead of `target`. */
  before(target: string): string {
    this.#target = target;
    const bound = this.#server.address();
    assert(bound !== null && typeof bound === "object", "the relay listens on a port");
    return `tcp:127.0.0.1:${bound.port}`;
  }

  /** Plans a deed; a function is called there and then, and everything goes on. */
  at(point: Point, deed: Deed | (() => void), onDone: () => void = () => {}): this {
    this.#incidents.push({ point, deed, onDone, seen: 0 });
    return this;
  }

  /** Passes on something else in the place of the first such frame of a channel. */
  forge(channel: number, frame: FrameName, forged: (bytes: Buffer) => Buffer): this {
    this.#forgeries.push({ channel, frame, forged });
    return this;
  }

  /** Slips bytes in between two frames for the source, as if the destination had sent them. */
  toSource(channel: number, bytes: Buffer): void {
    for (const each of this.#channels) if (each.number === channel) each.toSource(bytes);
  }

  /** Does it now, to a channel wherever it is in its traffic, or to all. */
  do(deed: "cut" | "stall", channel?: number): void {
    for (const each of this.#channels) {
      if (channel === undefined || each.number === channel) each[deed]();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const channel of this.#channels) channel.close();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    await promise;
  }

  #relay(source: Socket): void {
    const channel = new RelayedChannel(source, this.#target, (each, frame, pass) => {
      if (frame.name === "hello" && this.#isBroken(each)) each.close();
      else this.#look(each, frame, pass);
    });
    this.#channels.push(channel);
  }

  #isBroken({ number }: RelayedChannel): boolean {
    if (this.isMended) return false;
    return this.#channels.some((each) => each.number === number && each.state !== "open");
  }

  /** Forwards a frame by `pass`, with what was planned for it. */
  #look(channel: RelayedChannel, frame: PassingFrame, pass: (bytes: Buffer) => void): void {
    const forgery = this.#forgeries.findIndex((each) => {
      return each.channel === channel.number && each.frame === frame.name;
    });
    if (forgery !== -1) {
      const [each] = this.#forgeries.splice(forgery, 1);
      if (each !== undefined) pass(each.forged(frame.bytes));
      return;
    }
    const met = this.#incidents.filter(({ point }) => {
      return point.channel === channel.number && point.frame === frame.name;
    });
    for (const each of met) each.seen += 1;
    const incident = met.find(({ point, seen }) => seen === (point.nth ?? 1));
    if (incident === undefined) {
      pass(frame.bytes);
    } else if (incident.deed === "flip a bit") {
      pass(flipped(frame.bytes));
    } else {
      const { length } = frame.bytes;
      const size = bytesTo(incident.point.where, length);
      if (size > 0) pass(frame.bytes.subarray(0, size));
      this.#perform(incident.deed, channel);
      this.onDeed();
      incident.onDone();
      if (typeof incident.deed === "function") pass(frame.bytes.subarray(size));
    }
  }

  #perform(deed: Exclude<Deed, "flip a bit"> | (() => void), channel: RelayedChannel): void {
    if (typeof deed === "function") deed();
    else if (deed === "cut" || deed === "stall") channel[deed]();
    else this.do(deed === "cut link" ? "cut" : "stall");
  }
}

function bytesTo(where: Point["where"], length: number): number {
  if (typeof where === "number") return Math.min(where, length);
  return { before: 0, middle: length >> 1, after: length }[where];
}

type Look = (channel: RelayedChannel, frame: PassingFrame, pass: (bytes: Buffer) => void) => void;

/** One connection and its other half. */
class RelayedChannel {
  /** From its HELLO. */
  number = -1;
  readonly #source: Socket;
  readonly #destination: Socket;
  readonly #look: Look;
  state: "open" | "stalled" | "cut" = "open";

  constructor(source: Socket, target: string, look: Look) {
    this.#source = source;
    this.#look = look;
    const address = parseAddress(target);
    assert(address.kind === "tcp" || address.kind === "unix", "a relay connects to a listener");
    this.#destination = connect(
      address.kind === "tcp" ? { host: address.host, port: address.port } : { path: address.path },
    );
    this.#destination.setNoDelay(true);
    this.#forward(source, this.#destination);
    this.#forward(this.#destination, source);
  }

  /** What was passed on arrives, and then the end. */
  cut(): void {
    if (this.state === "cut") return;
    this.state = "cut";
    for (const socket of [this.#source, this.#destination]) {
      socket.destroySoon();
    }
  }

  toSource(bytes: Buffer): void {
    this.#source.write(bytes);
  }

  close(): void {
    this.state = "cut";
    this.#source.destroy();
    this.#destination.destroy();
  }

  /** Nobody reads and nobody writes here any more, but the connections stay. */
  stall(): void {
    if (this.state !== "open") return;
    this.state = "stalled";
    this.#source.pause();
    this.#destination.pause();
  }

  #forward(from: Socket, to: Socket): void {
    const splitter = new FrameSplitter();
    from.on("error", () => {}); // Who it belongs to says what it is.
    to.on("drain", () => this.state === "open" && from.resume());
    from.on("data", (bytes: Buffer) => {
      for (const frame of splitter.push(bytes)) {
        if (this.state !== "open") return;
        if (frame.name === "hello") this.number = frame.bytes.readUInt16LE(HELLO_CHANNEL_AT);
        this.#look(this, frame, (passed) => to.write(passed) || from.pause());
      }
    });
    from.on("close", () => {
      if (this.state !== "open") return;
      to.write(splitter.rest);
      this.cut();
    });
    from.resume();
  }
}

/** The last byte of the frame is another one. */
function flipped(bytes: Buffer): Buffer {
  const other = Buffer.from(bytes);
  const last = other.length - 1;
  other.writeUInt8(other.readUInt8(last) ^ 1, last);
  return other;
}
