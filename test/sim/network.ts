import type { Socket } from "node:net";
import { assert } from "../../base/assert.ts";
import { within } from "../../base/clock.ts";
import { MigrationError } from "../../base/errors.ts";
import { type Address, formatAddress } from "../../channels/address.ts";
import type { Connection, Connector, Listener } from "../../channels/connection.ts";
import type { Prng } from "../prng.ts";
import type { Side, World } from "./world.ts";

/** What a connection carries: bytes, what threads say to each other, or its end. */
type Item =
  | { readonly kind: "bytes"; readonly bytes: Uint8Array }
  | { readonly kind: "message"; readonly message: unknown }
  | { readonly kind: "end" };

export interface LinkQuality {
  readonly latencyMs: number;
  readonly bytesPerMs: number;
}

/** What the two systems keep between writer and reader; a writer waits for more to be read. */
const BUFFER_BYTES = 64 * 1024;

/** One direction of a connection: in order, and nothing is lost but at its end. */
class Link {
  readonly #world: World;
  readonly #quality: LinkQuality;
  readonly #writer: Side;
  readonly #reader: Side;
  readonly #held: { item: Item; size: number }[] = [];
  readonly #waiting: { size: number; done: () => void }[] = [];
  readonly deliver: (item: Item) => void;
  #freeAtMs = 0;
  #lastArrivalMs = 0;
  #stalledUntilMs = 0;
  #inFlight = 0;
  /** Nothing arrives of what is sent from now on. What is on its way still does. */
  isDead = false;
  /** Loss shows as delay: what was lost is sent again. */
  delayMs = 0;
  /** What was said first: somebody may say it once more. */
  opening: Uint8Array | null = null;

  constructor(
    world: World,
    terms: { quality: LinkQuality; writer: Side; reader: Side; deliver: (item: Item) => void },
  ) {
    this.#world = world;
    this.#quality = terms.quality;
    this.#writer = terms.writer;
    this.#reader = terms.reader;
    this.deliver = terms.deliver;
  }

  send(item: Item, size: number, done: () => void): void {
    if (this.#inFlight > BUFFER_BYTES) this.#waiting.push({ size: 0, done });
    const hasRoom = this.#inFlight <= BUFFER_BYTES;
    this.#inFlight += size;
    const now = this.#world.nowMs();
    this.#freeAtMs = Math.max(now, this.#freeAtMs) + size / this.#quality.bytesPerMs;
    if (hasRoom) this.#world.at(this.#freeAtMs - now, this.#writer, done);
    const arrivalMs = this.#freeAtMs + this.#quality.latencyMs + this.delayMs;
    this.#lastArrivalMs = Math.max(this.#lastArrivalMs, arrivalMs);
    if (this.isDead) return;
    this.#world.at(this.#lastArrivalMs - now, this.#reader, () => this.#arrive(item, size));
  }

  stall(forMs: number): void {
    this.#stalledUntilMs = Math.max(this.#stalledUntilMs, this.#world.nowMs() + forMs);
    if (Number.isFinite(forMs)) this.#world.at(forMs, null, () => this.#release());
  }

  #arrive(item: Item, size: number): void {
    if (this.#held.length > 0 || this.#world.nowMs() < this.#stalledUntilMs) {
      this.#held.push({ item, size });
    } else this.#pass(item, size);
  }

  #release(): void {
    if (this.#world.nowMs() < this.#stalledUntilMs) return;
    for (const { item, size } of this.#held.splice(0)) {
      this.#world.at(0, this.#reader, () => this.#pass(item, size));
    }
  }

  #pass(item: Item, size: number): void {
    this.#inFlight -= size;
    if (this.#inFlight <= BUFFER_BYTES) {
      for (const { done } of this.#waiting.splice(0)) this.#world.at(0, this.#writer, done);
    }
    this.deliver(item);
  }
}

type Handler = (value?: unknown) => void;

/** Stands in for one end's socket, as far as the engine uses it. */
export class SimulatedSocket {
  readonly side: Side;
  readonly fd: number;
  readonly remoteAddress = "simulated";
  readonly _handle: { fd: number };
  readonly #world: World;
  readonly #random: Prng;
  readonly #handlers = new Map<string, Set<Handler>>();
  readonly #inbox: Item[] = [];
  readonly #unwritten = new Set<(error: Error) => void>();
  #out: Link | null = null;
  #isFlowing = false;
  #wake: () => void = () => {};
  isDestroyed = false;
  /** Nothing more comes or goes. */
  isOver = false;

  constructor(world: World, random: Prng, { side, fd }: { side: Side; fd: number }) {
    this.#world = world;
    this.#random = random;
    this.side = side;
    this.fd = fd;
    this._handle = { fd };
  }

  get out(): Link {
    assert(this.#out !== null, "a socket is connected");
    return this.#out;
  }

  connectTo(peer: SimulatedSocket, quality: LinkQuality): void {
    this.#out = new Link(this.#world, {
      quality,
      writer: this.side,
      reader: peer.side,
      deliver: (item) => peer.#take(item),
    });
  }

  on(event: string, handler: Handler): this {
    const handlers = this.#handlers.get(event) ?? new Set();
    this.#handlers.set(event, handlers.add(handler));
    return this;
  }

  off(event: string, handler: Handler): this {
    this.#handlers.get(event)?.delete(handler);
    return this;
  }

  pause(): this {
    this.#isFlowing = false;
    return this;
  }

  resume(): this {
    this.#isFlowing = true;
    this.#world.at(0, this.side, () => this.#flow());
    return this;
  }

  get readableLength(): number {
    return this.#inbox.filter(({ kind }) => kind === "bytes").length;
  }

  /** As a stream of bytes: what was written at once may come in pieces. */
  write(bytes: Uint8Array, done: (error?: Error) => void = () => {}): void {
    this.out.opening ??= bytes.slice();
    const cut = this.#random.below(4) === 0 ? this.#random.below(1 + bytes.length) : 0;
    const pieces = [bytes.subarray(0, cut), bytes.subarray(cut)].filter(({ length }) => length > 0);
    const sent = pieces.map((piece) => this.#send({ kind: "bytes", bytes: piece }, piece.length));
    Promise.all(sent).then(() => done(), done);
  }

  /** What a thread writes to it. Fails when the connection does. */
  async post(message: unknown, size: number): Promise<void> {
    await this.#send({ kind: "message", message }, size);
  }

  /** What a thread reads next; undefined when nothing is there, null at the end. */
  poll(): unknown {
    const item = this.#inbox.shift();
    if (item?.kind === "message") return item.message;
    return item?.kind === "end" || this.isOver ? null : undefined;
  }

  /** Calls once when there may be something to read. */
  whenReadable(call: () => void): void {
    this.#wake = call;
  }

  destroy(): void {
    if (this.isDestroyed) return;
    this.isDestroyed = true;
    if (!this.isOver) this.out.send({ kind: "end" }, 1, () => {});
    this.#end();
  }

  /** The connection is gone, and this end sees it. */
  cut(): void {
    if (this.isOver) return;
    this.#end();
    this.#inbox.length = 0;
    this.#emit("close");
    this.#wake();
  }

  async #send(item: Item, size: number): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    if (this.isOver || this.isDestroyed) {
      this.#world.at(0, this.side, () => reject(new Error("write EPIPE")));
    } else {
      this.#unwritten.add(reject);
      this.out.send(item, size, resolve);
    }
    try {
      await promise;
    } finally {
      this.#unwritten.delete(reject);
    }
  }

  #end(): void {
    this.isOver = true;
    for (const reject of this.#unwritten) {
      this.#world.at(0, this.side, () => reject(new Error("read ECONNRESET")));
    }
  }

  #take(item: Item): void {
    if (this.isOver) return;
    this.#inbox.push(item);
    this.#flow();
    this.#wake();
  }

  #flow(): void {
    const readers = this.#handlers.get("data");
    while (this.#isFlowing && readers !== undefined && readers.size > 0) {
      const item = this.#inbox.shift();
      if (item === undefined) return;
      if (item.kind === "bytes") this.#emit("data", item.bytes);
      else if (item.kind === "end") this.#emit("end");
    }
  }

  #emit(event: string, value?: unknown): void {
    for (const handler of [...(this.#handlers.get(event) ?? [])]) handler(value);
  }
}

export interface Wire {
  readonly channel: number;
  readonly source: SimulatedSocket;
  readonly destination: SimulatedSocket;
}

interface Door {
  readonly side: Side;
  readonly arrivals: SimulatedSocket[];
  onArrival: () => void;
  isOpen: boolean;
}

/** Every listener and connection of a simulation, and what can befall them. */
export class Network {
  readonly wires: Wire[] = [];
  readonly #world: World;
  readonly #random: Prng;
  readonly #quality: LinkQuality;
  readonly #doors = new Map<string, Door>();
  readonly #sockets = new Map<number, SimulatedSocket>();
  /** Every connection that is made from now on is like this. */
  isUnreachable = false;
  #fds = 100;

  constructor(world: World, random: Prng, quality: LinkQuality) {
    this.#world = world;
    this.#random = random;
    this.#quality = quality;
  }

  socketOf(fd: number): SimulatedSocket {
    const socket = this.#sockets.get(fd);
    assert(socket !== undefined, "a thread gets a descriptor that is open");
    return socket;
  }

  /** What a side that goes on has not closed. */
  leftOpen(): string[] {
    const sockets = [...this.#sockets.values()]
      .filter(({ isDestroyed, side }) => !isDestroyed && !side.isCrashed)
      .map(({ fd, side }) => `${side.name} left descriptor ${fd} open`);
    const doors = [...this.#doors.values()]
      .filter(({ isOpen, side }) => isOpen && !side.isCrashed)
      .map(({ side }) => `${side.name} still listens`);
    return [...sockets, ...doors];
  }

  connector(side: Side, address: Address): Connector {
    const name = formatAddress(address);
    return {
      connect: (channel, limitMs) => this.#connect(side, name, channel, limitMs),
      close() {},
    };
  }

  async listen(side: Side, address: Address): Promise<Listener> {
    const name = formatAddress(address);
    await this.#world.sleep(0.1);
    const door: Door = { side, arrivals: [], onArrival: () => {}, isOpen: true };
    this.#doors.set(name, door);
    let reject = (_error: Error): void => {};
    return {
      address: name,
      expect: () => {},
      next: async (limitMs) => {
        const { promise, resolve, reject: fail } = Promise.withResolvers<Connection>();
        reject = fail;
        const take = (): void => {
          const socket = door.arrivals.shift();
          if (socket === undefined) return;
          door.onArrival = () => {};
          resolve(connectionOf(socket));
        };
        door.onArrival = take;
        if (!door.isOpen) fail(new MigrationError("CANCELLED", { phase: "listen" }));
        take();
        return await within(
          limitMs,
          promise,
          () => new MigrationError("NO_SOURCE", { address: name, limitMs }),
        );
      },
      close: () => {
        door.isOpen = false;
        this.#doors.delete(name);
        for (const socket of door.arrivals.splice(0)) socket.destroy();
        reject(new MigrationError("CANCELLED", { phase: "listen" }));
      },
    };
  }

  /** Nobody listens any more, though whoever did knows nothing of it. */
  closeDoors(): void {
    for (const door of this.#doors.values()) door.isOpen = false;
    this.#doors.clear();
  }

  /** A process ends, and its system tells the peers so, or the whole machine is gone silently. */
  crash(side: Side, isSilent: boolean): void {
    this.#world.tell(`${side.name} crashes${isSilent ? " with its machine" : ""}`);
    side.isCrashed = true;
    for (const [name, door] of this.#doors) if (door.side === side) this.#doors.delete(name);
    for (const { source, destination } of this.wires) {
      const [dead, other] = source.side === side ? [source, destination] : [destination, source];
      if (dead.side !== side || dead.isDestroyed) continue;
      dead.out.isDead = true;
      other.out.isDead = true;
      dead.isOver = true;
      if (!isSilent) this.#world.at(this.#quality.latencyMs, other.side, () => other.cut());
    }
    if (isSilent) this.isUnreachable = true;
  }

  cut(wire: Wire, seenBy: "both" | "source" | "destination"): void {
    wire.source.out.isDead = true;
    wire.destination.out.isDead = true;
    for (const end of ["source", "destination"] as const) {
      if (seenBy !== "both" && seenBy !== end) continue;
      this.#world.at(this.#random.below(10) / 10, wire[end].side, () => wire[end].cut());
    }
  }

  async #connect(side: Side, name: string, channel: number, limitMs: number): Promise<Connection> {
    await this.#world.sleep(2 * this.#quality.latencyMs);
    if (this.isUnreachable) await this.#world.sleep(limitMs);
    const door = this.#doors.get(name);
    if (this.isUnreachable || door === undefined || door.side.isCrashed) {
      const reason = this.isUnreachable ? "no answer" : "connect ECONNREFUSED";
      const refused = Object.assign(new Error(reason), { code: "ECONNREFUSED" });
      throw new MigrationError(
        "CONNECT_FAILED",
        { address: name, reason },
        this.isUnreachable ? {} : { cause: refused },
      );
    }
    const source = this.#socket(side);
    const destination = this.#socket(door.side);
    source.connectTo(destination, this.#quality);
    destination.connectTo(source, this.#quality);
    this.wires.push({ channel, source, destination });
    door.arrivals.push(destination);
    this.#world.at(0, door.side, () => door.onArrival());
    return connectionOf(source);
  }

  #socket(side: Side): SimulatedSocket {
    const socket = new SimulatedSocket(this.#world, this.#random, { side, fd: this.#fds++ });
    this.#sockets.set(socket.fd, socket);
    return socket;
  }
}

function connectionOf(socket: SimulatedSocket): Connection {
  const likeReal = socket as unknown as Socket;
  return { reader: likeReal, writer: likeReal, close: () => socket.destroy() };
}
