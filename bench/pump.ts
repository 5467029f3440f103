import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { assert } from "../base/assert.ts";
import { parseAddress } from "../channels/address.ts";
import {
  type Connection,
  connector,
  descriptorOf,
  listen,
  stopReading,
} from "../channels/connection.ts";
import type { PumpThread } from "./pump-thread.ts";
import type { PumpTask } from "./pump-worker.ts";

/** What a pump moves: `bytes` in all, shared by the connections, in writes of `pieceBytes`. */
export interface PumpLoad {
  readonly connections: number;
  readonly bytes: number;
  readonly pieceBytes: number;
  /** Whether threads go through the memory that their end holds, each through its share. */
  readonly isThroughMemory: boolean;
}

/** From the first thread's first call to the last thread's last; processor time is the threads'. */
export interface PumpFigures {
  readonly elapsedMs: number;
  readonly cpuMs: number;
}

const LIMIT_MS = 10_000;

/**
 * The least that any engine must do: threads that write and read the sockets that the engine would
 * use, in pieces of its size, waiting as it waits. Nothing is looked at. The bytes come from and go
 * to one small buffer that never leaves the cache or, as a guest's do, `held`: all the memory that
 * this end holds, warm, the same that the engine moves.
 */
export async function pumpIn(
  load: PumpLoad,
  held: SharedArrayBuffer,
): Promise<{ address: string; finished: Promise<PumpFigures> }> {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  const receive = async (): Promise<PumpFigures> => {
    const connections: Connection[] = [];
    while (connections.length < load.connections) connections.push(await listener.next(LIMIT_MS));
    listener.close();
    return await pump("in", connections, { ...load, held });
  };
  const finished = receive();
  finished.catch(() => {}); // Whoever asks for the figures gets it.
  return { address: listener.address, finished };
}

export async function pumpOut(
  address: string,
  load: PumpLoad,
  held: SharedArrayBuffer,
): Promise<PumpFigures> {
  const dialer = connector(parseAddress(address));
  const connections: Connection[] = [];
  for (let channel = 1; channel <= load.connections; channel += 1) {
    connections.push(await dialer.connect(channel, LIMIT_MS));
  }
  return await pump("out", connections, { ...load, held });
}

async function pump(
  direction: "in" | "out",
  connections: readonly Connection[],
  load: PumpLoad & { held: SharedArrayBuffer },
): Promise<PumpFigures> {
  assert(load.bytes % load.connections === 0, "every connection moves as much");
  assert(load.held.byteLength >= load.bytes, "an end holds as much as is moved");
  const share = load.bytes / load.connections;
  const url = new URL("./pump-worker.ts", import.meta.url);
  return await runThreads<PumpTask>(url, connections, (common, index) => {
    const memory = load.isThroughMemory
      ? { memory: load.held, memoryAt: index * share, memoryBytes: share }
      : { memory: smallBuffer(load), memoryAt: 0, memoryBytes: load.pieceBytes };
    return { ...common, direction, bytes: share, pieceBytes: load.pieceBytes, ...memory };
  });
}

/** A thread for each connection, which begin together once all are there. Closes the connections. */
export async function runThreads<Task extends PumpThread>(
  url: URL,
  connections: readonly Connection[],
  taskOf: (common: PumpThread, index: number) => Task,
): Promise<PumpFigures> {
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const start = new Int32Array(new SharedArrayBuffer(8));
  const times = connections.map(() => new Float64Array(new SharedArrayBuffer(24)));
  const workers = connections.map(({ reader }, index) => {
    stopReading(reader);
    const fd = descriptorOf(reader);
    const own = { fd, channel: index + 1, stop, start, times: times[index] as Float64Array };
    return new Worker(url, { workerData: taskOf(own, index) });
  });
  for (let ready = 0; ready < workers.length; ready = Atomics.load(start, 0)) {
    const { async, value } = Atomics.waitAsync(start, 0, ready, LIMIT_MS);
    if (async) await value;
  }
  Atomics.store(start, 1, 1);
  Atomics.notify(start, 1);
  const codes = await Promise.all(workers.map((worker) => once(worker, "exit")));
  for (const connection of connections) connection.close();
  assert(
    codes.every(([code]) => code === 0),
    "every thread of the pump did its work",
  );
  const began = Math.min(...times.map((triple) => triple[0] as number));
  const ended = Math.max(...times.map((triple) => triple[1] as number));
  const cpuMs = times.reduce((sum, triple) => sum + (triple[2] as number), 0);
  return { elapsedMs: ended - began, cpuMs };
}

function smallBuffer({ pieceBytes }: PumpLoad): SharedArrayBuffer {
  const buffer = new SharedArrayBuffer(pieceBytes);
  new Uint8Array(buffer).fill(0xa5);
  return buffer;
}
