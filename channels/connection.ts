import { type ChildProcess, spawn } from "node:child_process";
import { fstatSync } from "node:fs";
import { connect as connectSocket, createServer, type Server, Socket } from "node:net";
import { assert } from "../base/assert.ts";
import { within } from "../base/clock.ts";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";
import { type Address, formatAddress } from "./address.ts";

/** One duplex connection of any kind. `reader` and `writer` are one socket or a command's pipes. */
export interface Connection {
  readonly reader: Socket;
  readonly writer: Socket;
  /** Closes the descriptors and ends a command that was started. Nobody may be using them. */
  close(): void;
}

/** Makes connections to one address; `channel` counts from 0, the main channel. */
export interface Connector {
  connect(channel: number, limitMs: number): Promise<Connection>;
  /** Ends what is being connected, with CONNECT_FAILED. What was connected stays. */
  close(): void;
}

/** Takes connections in at one address. */
export interface Listener {
  /** Where it really listens: a port 0 was replaced. */
  readonly address: string;
  /** The next connection, in order of arrival. Throws NO_SOURCE after `limitMs`. */
  next(limitMs: number): Promise<Connection>;
  /** So many connections are wanted altogether: kinds that make them themselves make no more. */
  expect(count: number): void;
  /** Also closes what nobody took. */
  close(): void;
}

/** Probes of an idle TCP connection begin after this: a dead host is noticed without traffic. */
const KEEP_ALIVE_MS = 5000;

/** Connections that wait to be taken; more are closed at once, so that a flood costs little. */
const BACKLOG_MAX = 128;

export function connector(address: Address): Connector {
  switch (address.kind) {
    case "tcp":
      return dialer(address, { host: address.host, port: address.port });
    case "unix":
      return dialer(address, { path: address.path });
    case "fd":
      return {
        connect: async (channel) => adoptDescriptor(address.descriptors, channel),
        close() {},
      };
    case "exec":
      return { connect: async () => startCommand(address.command), close() {} };
  }
}

export async function listen(address: Address): Promise<Listener> {
  switch (address.kind) {
    case "tcp":
      return await serve(address, { host: address.host, port: address.port });
    case "unix":
      return await serve(address, { path: address.path });
    case "fd":
      return supply(address, (channel) => adoptDescriptor(address.descriptors, channel));
    case "exec":
      return supply(address, () => startCommand(address.command));
  }
}

/** The number by which a thread reads or writes this socket. Node tells it under `_handle` only. */
export function descriptorOf(socket: Socket): number {
  const handle = (socket as unknown as { _handle?: { fd?: number } })._handle;
  const fd = handle?.fd;
  assert(fd !== undefined && fd >= 0, "an open socket has a descriptor");
  return fd;
}

/** Stops the event loop from reading this socket: from now on a thread reads its descriptor. */
export function stopReading(socket: Socket): void {
  socket.pause();
  (socket as unknown as { _handle?: { readStop?(): void } })._handle?.readStop?.();
}

function fromSocket(socket: Socket): Connection {
  return { reader: socket, writer: socket, close: () => socket.destroy() };
}

type Endpoint = { readonly host: string; readonly port: number } | { readonly path: string };

function dialer(address: Address, endpoint: Endpoint): Connector {
  const name = formatAddress(address);
  const waiting = new Set<(error: Error) => void>();
  return {
    close() {
      for (const reject of waiting) reject(new Error("this end closed it"));
    },
    async connect(_channel, limitMs) {
      const socket = connectSocket({
        ...endpoint,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: KEEP_ALIVE_MS,
      });
      socket.pause();
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      socket.once("connect", resolve);
      socket.once("error", reject);
      // For later: a socket without a listener for errors would take the process down with it.
      socket.on("error", () => {});
      waiting.add(reject);
      try {
        await within(limitMs, promise, () => new Error(`no answer within ${limitMs} ms`));
      } catch (error) {
        socket.destroy();
        throw new MigrationError(
          "CONNECT_FAILED",
          { address: name, reason: reasonOf(error) },
          { cause: error },
        );
      } finally {
        waiting.delete(reject);
      }
      socket.off("error", reject);
      return fromSocket(socket);
    },
  };
}

/** Connections that arrived or are awaited; the order of arrival is kept. */
class Arrivals {
  readonly #waiting: Connection[] = [];
  #taker: { resolve(connection: Connection): void; reject(error: Error): void } | null = null;
  #isClosed = false;

  add(connection: Connection): void {
    // As of one that connects.
    connection.reader.on("error", () => {});
    connection.writer.on("error", () => {});
    // Several may arrive before the taker comes to run: it takes one, the others wait.
    const taker = this.#taker;
    this.#taker = null;
    if (this.#isClosed || this.#waiting.length >= BACKLOG_MAX) connection.close();
    else if (taker === null) this.#waiting.push(connection);
    else taker.resolve(connection);
  }

  async next(limitMs: number, address: string): Promise<Connection> {
    assert(this.#taker === null, "one taker waits at a time");
    const first = this.#waiting.shift();
    if (first !== undefined) return first;
    if (this.#isClosed) throw new MigrationError("CANCELLED", { phase: "listen" });
    const { promise, resolve, reject } = Promise.withResolvers<Connection>();
    this.#taker = { resolve, reject };
    const late = () => new MigrationError("NO_SOURCE", { address, limitMs });
    try {
      return await within(limitMs, promise, late);
    } finally {
      this.#taker = null;
    }
  }

  close(): void {
    this.#isClosed = true;
    this.#taker?.reject(new MigrationError("CANCELLED", { phase: "listen" }));
    for (const connection of this.#waiting.splice(0)) connection.close();
  }
}

async function serve(address: Address, endpoint: Endpoint): Promise<Listener> {
  const arrivals = new Arrivals();
  const server = createServer(
    { pauseOnConnect: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_MS },
    (socket) => arrivals.add(fromSocket(socket)),
  );
  await startServer(server, address, endpoint);
  const name = boundAddress(server, address);
  return {
    address: name,
    next: (limitMs) => arrivals.next(limitMs, name),
    expect: () => {},
    close() {
      server.close();
      arrivals.close();
    },
  };
}

async function startServer(server: Server, address: Address, endpoint: Endpoint): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(endpoint, resolve);
  try {
    await promise;
  } catch (error) {
    const facts = { address: formatAddress(address), reason: reasonOf(error) };
    throw new MigrationError("ADDRESS_UNUSABLE", facts, { cause: error });
  }
  server.off("error", reject);
  server.on("error", () => {});
}

function boundAddress(server: Server, address: Address): string {
  const bound = server.address();
  if (address.kind !== "tcp" || bound === null || typeof bound === "string") {
    return formatAddress(address);
  }
  return formatAddress({ ...address, port: bound.port });
}

/** A listener for kinds that have nobody to wait for: it makes each connection when it is wanted. */
function supply(address: Address, make: (channel: number) => Connection): Listener {
  const arrivals = new Arrivals();
  const name = formatAddress(address);
  let made = 0;
  const expect = (count: number): void => {
    while (made < count) arrivals.add(make(made++));
  };
  expect(1);
  return {
    address: name,
    next: (limitMs) => arrivals.next(limitMs, name),
    expect,
    close: () => arrivals.close(),
  };
}

function adoptDescriptor(descriptors: readonly number[], channel: number): Connection {
  const fd = descriptors[channel];
  if (fd === undefined) {
    throw new MigrationError("ADDRESS_UNUSABLE", {
      address: formatAddress({ kind: "fd", descriptors }),
      reason: `channel ${channel} needs a descriptor of its own: one for the main channel and one for each other`,
    });
  }
  try {
    assert(fstatSync(fd).isSocket(), "a channel's descriptor is a socket");
    // Opening it as a handle puts the descriptor into non-blocking mode.
    const socket = new Socket({ fd, readable: true, writable: true, allowHalfOpen: false });
    socket.setNoDelay(true); // Without effect on a unix socket.
    socket.pause();
    return fromSocket(socket);
  } catch (error) {
    const facts = { address: `fd:${fd}`, reason: reasonOf(error) };
    throw new MigrationError("ADDRESS_UNUSABLE", facts, { cause: error });
  }
}

function startCommand(command: string): Connection {
  const child: ChildProcess = spawn("/bin/sh", ["-c", command], {
    stdio: ["pipe", "pipe", "inherit"],
    detached: true, // Leads a group of its own, so that what it starts can be ended with it.
  });
  child.on("error", () => {}); // A command that cannot start shows as pipes that end.
  const { stdin, stdout } = child;
  if (stdin === null || stdout === null) {
    throw new MigrationError("ADDRESS_UNUSABLE", {
      address: `exec:${command}`,
      reason: "it has no pipes",
    });
  }
  return {
    reader: stdout as Socket,
    writer: stdin as Socket,
    close() {
      stdin.destroy();
      stdout.destroy();
      endGroup(child);
    },
  };
}

/** Ends a command and whatever it has started. */
function endGroup({ pid, exitCode, signalCode }: ChildProcess): void {
  // Of one that has ended the number may be somebody else's by now.
  if (pid === undefined || exitCode !== null || signalCode !== null) return;
  try {
    process.kill(-pid);
  } catch (error) {
    // It has ended by itself, or is another user's (`sudo`), and ends without its pipes.
    if (!["ESRCH", "EPERM"].includes(errnoOf(error) ?? "")) throw error;
  }
}
