import { once } from "node:events";
import type { Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { MINUTE_MS } from "../base/units.ts";
import { parseAddress } from "../channels/address.ts";
import {
  type Connection,
  connector,
  descriptorOf,
  listen,
  stopReading,
} from "../channels/connection.ts";
import type { FloorTask } from "./fault-floor-worker.ts";

const LIMIT_MS = 10_000;
/** For all requests, each of which takes some hundred microseconds. */
const THREAD_LIMIT_MS = MINUTE_MS;

/**
 * The least that a page fault over a network takes: a thread writes a request and is blocked until a
 * page has come back from a thread that was blocked until the request came. Nothing else goes on.
 */
export async function answerFloor(
  count: number,
  processor: number | null,
): Promise<{
  address: string;
  finished: Promise<unknown>;
}> {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  const answer = async (): Promise<void> => {
    try {
      const connection = await listener.next(LIMIT_MS);
      await runThread("answer", connection, { count, processor });
    } finally {
      listener.close();
    }
  };
  const finished = answer();
  finished.catch(() => {}); // Whoever asks for its end gets it.
  return { address: listener.address, finished };
}

/** Microseconds that each request took, with a pause before each. */
export async function askFloor(
  address: string,
  how: { count: number; pauseMs: number; processor: number | null },
): Promise<Float64Array> {
  const connection = await connector(parseAddress(address)).connect(1, LIMIT_MS);
  return await runThread("ask", connection, how);
}

/** Reads and writes of its descriptor wait in the kernel from now on, which the engine's never do. */
function blocking(socket: Socket): number {
  stopReading(socket);
  (socket as unknown as { _handle: { setBlocking(on: boolean): void } })._handle.setBlocking(true);
  return descriptorOf(socket);
}

/** A thread for one side. Its end is the connection's, and so that of the other side's thread. */
async function runThread(
  side: FloorTask["side"],
  { reader, close }: Connection,
  { count, pauseMs = 0, processor }: { count: number; pauseMs?: number; processor: number | null },
): Promise<Float64Array> {
  const times = new Float64Array(new SharedArrayBuffer(count * 8));
  const worker = new Worker(new URL("./fault-floor-worker.ts", import.meta.url), {
    workerData: {
      side,
      fd: blocking(reader as Socket),
      count,
      pauseMs,
      processor,
      times,
    } satisfies FloorTask,
  });
  worker.once("exit", close);
  const late = Promise.withResolvers<never>();
  // Nothing wakes a thread that waits in the kernel: it is left to whoever kills this process.
  const timer = setTimeout(() => late.reject(new Error("no page came back")), THREAD_LIMIT_MS);
  try {
    await Promise.race([once(worker, "exit"), late.promise]);
  } finally {
    clearTimeout(timer);
  }
  return times;
}
