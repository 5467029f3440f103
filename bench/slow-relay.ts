import { connect, createServer, type Server, type Socket } from "node:net";
import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { HEADER_BYTES } from "../channels/frame.ts";

/** Where a HELLO, the first frame of a connection, names its channel. */
const HELLO_CHANNEL_AT = HEADER_BYTES + 20;

/** Timers are not finer than this: a connection may be ahead of its rate by so much. */
const AHEAD_MS = 2;

/** Timers are late; what was not forwarded for that reason is made up for, up to so much. */
const BEHIND_MS = 30;

/** What a channel's connection may do, by the channel's number; 0 is the main channel. */
export interface Limits {
  bytesPerSecond(channel: number): number;
  /** After so many bytes the connection is cut, and no other one is let in for it. */
  cutAfterBytes(channel: number): number;
}

/**
 * Forwards connections, each at a rate of its own, as links do that differ. From the source only:
 * answers are small. It reads no faster than it forwards, so that what waits is seen by the source.
 */
export class SlowRelay implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #cut = new Set<number>();
  readonly #port: number;

  private constructor(server: Server, target: string, limits: Limits) {
    this.#server = server;
    const bound = server.address();
    assert(bound !== null && typeof bound === "object", "a relay has a port");
    this.#port = bound.port;
    const port = Number(target.split(":").at(-1));
    server.on("connection", (source) => this.#forward(source, port, limits));
  }

  static async start(target: string, limits: Limits): Promise<SlowRelay> {
    const server = createServer({ pauseOnConnect: true, noDelay: true });
    const { promise, resolve } = Promise.withResolvers<void>();
    server.listen({ host: "127.0.0.1", port: 0 }, resolve);
    await promise;
    return new SlowRelay(server, target, limits);
  }

  get address(): string {
    return `tcp:127.0.0.1:${this.#port}`;
  }

  get cuts(): number {
    return this.#cut.size;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    await promise;
  }

  #forward(source: Socket, port: number, limits: Limits): void {
    const destination = connect({ host: "127.0.0.1", port, noDelay: true });
    for (const socket of [source, destination]) {
      this.#sockets.add(socket);
      socket.on("error", () => {}); // Both ends say what it is to them.
      socket.on("close", () => {
        source.destroy();
        destination.destroy();
        this.#sockets.delete(socket);
      });
    }
    destination.pipe(source);
    let channel = -1;
    let forwarded = 0;
    let freeAtMs = 0;
    source.on("data", (bytes: Buffer) => {
      if (channel === -1) channel = bytes.readUInt16LE(HELLO_CHANNEL_AT);
      forwarded += bytes.length;
      if (this.#cut.has(channel) || forwarded > limits.cutAfterBytes(channel)) {
        this.#cut.add(channel);
        source.destroy();
        return;
      }
      const isTaken = destination.write(bytes);
      const now = nowMs();
      freeAtMs =
        Math.max(freeAtMs, now - BEHIND_MS) +
        (bytes.length * 1000) / limits.bytesPerSecond(channel);
      const waitMs = freeAtMs - now - AHEAD_MS;
      if (waitMs <= 0 && isTaken) return;
      source.pause();
      let waits = isTaken ? 1 : 2;
      const go = (): void => {
        waits -= 1;
        if (waits === 0) source.resume();
      };
      if (!isTaken) destination.once("drain", go);
      setTimeout(go, Math.max(0, waitMs));
    });
    source.resume();
  }
}
