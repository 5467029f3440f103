import type { Socket } from "node:net";
import xxhash from "xxhash-wasm";

/**
 * One end of a connection, written from docs/wire.md alone: it shares no code with the engine, so
 * that the two can only agree if the document is right. It checks all that the document says of
 * headers, and can be told to send whatever a test wants to see refused.
 */
export class WireConnection {
  readonly #socket: Socket;
  #bytes = Buffer.alloc(0);
  #isEnded = false;
  #wake: () => void = () => {};
  #received = 0;
  #sent = 0;
  #pings: NodeJS.Timeout | null = null;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes]);
      this.#wake();
    });
    const end = (): void => {
      this.#isEnded = true;
      this.#wake();
    };
    socket.on("end", end);
    socket.on("close", end);
    socket.on("error", end);
  }

  /** Sends a frame with the next sequence number. */
  async send(kind: number, body: Uint8Array = NOTHING, hasChecksum = true): Promise<void> {
    await this.sendBytes(frameBytes({ kind, sequence: this.#sent, body, hasChecksum }));
    this.#sent += 1;
  }

  /** The sequence number of the next frame. */
  get sequence(): number {
    return this.#sent;
  }

  /** Sends bytes as they are; the sequence does not count them. */
  async sendBytes(bytes: Uint8Array): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#socket.write(bytes, (error) => (error ? reject(error) : resolve()));
    });
  }

  /** The next frame that is no PING. Throws WireEnd when the other end has closed. */
  async receive(): Promise<WireFrame> {
    for (;;) {
      const frame = await this.#receiveAny();
      if (frame.kind !== KIND.ping) return frame;
    }
  }

  /** The same, but throws WireFailure for a FAILURE. */
  async receiveOrFail(): Promise<WireFrame> {
    const frame = await this.receive();
    if (frame.kind === KIND.failure) throw failureOf(frame.body);
    return frame;
  }

  /** The next frame, which must be of that kind. Throws WireFailure for a FAILURE instead. */
  async expect(kind: number): Promise<Buffer> {
    const frame = await this.receiveOrFail();
    if (frame.kind !== kind) throw new Error(`frame ${frame.kind} came, not ${kind}`);
    return frame.body;
  }

  /** Sends a PING every so often. */
  startPings(everyMs: number): void {
    this.#pings = setInterval(() => void this.send(KIND.ping).catch(() => {}), everyMs);
  }

  /** Resolves when the other end has closed, whatever it still sends. */
  async closed(): Promise<void> {
    while (!this.#isEnded) {
      this.#bytes = Buffer.alloc(0);
      await this.#change();
    }
  }

  /** Ends this direction in order: what was sent arrives. */
  end(): void {
    if (this.#pings !== null) clearInterval(this.#pings);
    this.#socket.end();
  }

  close(): void {
    if (this.#pings !== null) clearInterval(this.#pings);
    this.#socket.destroy();
  }

  async #receiveAny(): Promise<WireFrame> {
    const header = await this.#take(HEADER_BYTES);
    const breach = (what: string) => new Error(`a frame has the wrong ${what}`);
    if (header.subarray(0, 4).toString("latin1") !== "mfd1") throw breach("magic");
    const kind = header.readUInt8(4);
    const flags = header.readUInt8(5);
    if (flags > 1) throw breach("flags");
    if (header.readUInt16LE(6) !== 0) throw breach("reserved bytes");
    const sequence = header.readUInt32LE(8);
    if (sequence !== this.#received) throw breach("sequence");
    this.#received += 1;
    const length = header.readUInt32LE(12);
    if (length > (BODY_BYTES_MAX.get(kind) ?? -1)) throw breach("length or kind");
    const body = await this.#take(length);
    const hasChecksum = flags === 1;
    const checksum = hasChecksum ? checksumOf(header.subarray(0, 16), body) : 0n;
    if (header.readBigUInt64LE(16) !== checksum) throw breach("checksum");
    return { kind, sequence, body, hasChecksum };
  }

  async #take(size: number): Promise<Buffer> {
    while (this.#bytes.length < size) {
      if (this.#isEnded) throw new WireEnd(`${this.#bytes.length} of ${size} bytes came`);
      await this.#change();
    }
    const taken = this.#bytes.subarray(0, size);
    this.#bytes = this.#bytes.subarray(size);
    return taken;
  }

  async #change(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }
}

/** Numbers on the wire are never given anew: a row that moves is a mistake, not a change. */
export const KIND = {
  hello: 1,
  welcome: 2,
  agree: 3,
  accept: 4,
  failure: 5,
  pages: 6,
  fence: 7,
  fenced: 8,
  end: 9,
  round: 10,
  devices: 11,
  section: 12,
  piece: 13,
  ready: 14,
  commit: 15,
  running: 16,
  done: 17,
  ping: 18,
  lost: 19,
  gone: 20,
  lanes: 24,
  discard: 25,
  switch: 26,
  request: 27,
  complete: 28,
  faults: 29,
  rejoin: 32,
  recover: 33,
  missing: 34,
  recovered: 35,
  resumed: 36,
} as const;

export const LANE = { main: 1, bulk: 2 } as const;
export const ENCODING = { zero: 1, raw: 2, delta: 3 } as const;
export const HEADER_BYTES = 24;

const BODY_BYTES_MAX = new Map<number, number>([
  [KIND.hello, 56],
  [KIND.welcome, 36],
  [KIND.agree, 341_138],
  [KIND.accept, 0],
  [KIND.failure, 16_384],
  [KIND.pages, 1_054_728],
  [KIND.fence, 4],
  [KIND.fenced, 4],
  [KIND.end, 0],
  [KIND.round, 40],
  [KIND.devices, 16],
  [KIND.section, 265],
  [KIND.piece, 262_144],
  [KIND.ready, 0],
  [KIND.commit, 0],
  [KIND.running, 24],
  [KIND.done, 80],
  [KIND.ping, 0],
  [KIND.lost, 4],
  [KIND.gone, 4],
  [KIND.rejoin, 4],
  [KIND.recover, 0],
  [KIND.missing, 65_544],
  [KIND.recovered, 8],
  [KIND.resumed, 0],
]);

const NOTHING = new Uint8Array(0);
const { create64 } = await xxhash();

export interface WireFrame {
  readonly kind: number;
  readonly sequence: number;
  readonly body: Buffer;
  readonly hasChecksum: boolean;
}

/** The other end closed where a frame was due. */
export class WireEnd extends Error {
  override name = "WireEnd";
}

/** The other end said FAILURE. */
export class WireFailure extends Error {
  override name = "WireFailure";
  readonly code: string;
  readonly facts: Record<string, unknown>;

  constructor(code: string, facts: Record<string, unknown>) {
    super(`${code} ${JSON.stringify(facts)}`);
    this.code = code;
    this.facts = facts;
  }
}

export function checksumOf(...parts: readonly Uint8Array[]): bigint {
  const hash = create64();
  for (const part of parts) hash.update(part);
  return hash.digest();
}

/** A whole frame; the checksum is right unless a test gives another one. */
export function frameBytes(frame: {
  kind: number;
  sequence: number;
  body: Uint8Array;
  hasChecksum: boolean;
  checksum?: bigint;
}): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + frame.body.length);
  bytes.write("mfd1", 0, "latin1");
  bytes.writeUInt8(frame.kind, 4);
  bytes.writeUInt8(frame.hasChecksum ? 1 : 0, 5);
  bytes.writeUInt32LE(frame.sequence, 8);
  bytes.writeUInt32LE(frame.body.length, 12);
  bytes.set(frame.body, HEADER_BYTES);
  const checksum = frame.hasChecksum ? checksumOf(bytes.subarray(0, 16), frame.body) : 0n;
  bytes.writeBigUInt64LE(frame.checksum ?? checksum, 16);
  return bytes;
}

/** Fields of a body, one after the other. */
export function bodyOf(...fields: readonly Uint8Array[]): Buffer {
  return Buffer.concat(fields);
}
export function u8(value: number): Buffer {
  return Buffer.from([value]);
}
export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}
export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}
export function str(text: string): Buffer {
  const bytes = Buffer.from(text, "utf8");
  return Buffer.concat([u16(bytes.length), bytes]);
}

/** Takes a body apart. */
export class WireBody {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  u8(): number {
    return this.take(1).readUInt8();
  }
  u16(): number {
    return this.take(2).readUInt16LE();
  }
  u32(): number {
    return this.take(4).readUInt32LE();
  }
  u64(): bigint {
    return this.take(8).readBigUInt64LE();
  }
  str(): string {
    return this.take(this.u16()).toString("utf8");
  }
  take(size: number): Buffer {
    const taken = this.#bytes.subarray(this.#at, this.#at + size);
    if (taken.length !== size) throw new Error("a body is too short");
    this.#at += size;
    return taken;
  }
  /** All that is left. */
  rest(): Buffer {
    return this.take(this.#bytes.length - this.#at);
  }
  end(): void {
    if (this.#at !== this.#bytes.length) throw new Error("a body is too long");
  }
}

export function failureOf(body: Buffer): WireFailure {
  const reader = new WireBody(body);
  const failure = new WireFailure(reader.str(), JSON.parse(reader.str()) as WireFailure["facts"]);
  reader.end();
  return failure;
}

export interface HelloFields {
  readonly versionMin?: number;
  readonly versionMax?: number;
  readonly migrationId: Uint8Array;
  readonly channel: number;
  readonly lane: number;
  readonly token: Uint8Array;
}

export function helloBody(hello: HelloFields): Buffer {
  const { versionMin = 1, versionMax = 1, migrationId, channel, lane, token } = hello;
  const fields = [u16(versionMin), u16(versionMax), migrationId, u16(channel)];
  return bodyOf(...fields, u8(lane), u8(0), token);
}

/** xxHash64 of every `name=value` and a line feed. */
export function fingerprint(parameters: readonly WireParameter[]): bigint {
  return checksumOf(Buffer.from(parameters.map(([name, value]) => `${name}=${value}\n`).join("")));
}

export type WireParameter = readonly [name: string, value: string];

export interface WireBlock {
  readonly name: string;
  readonly pageBytes: number;
  readonly bytes: Uint8Array;
}

export function wirePageOf(pageBytes: number): number {
  return pageBytes <= 65_536 ? pageBytes : 4096;
}
