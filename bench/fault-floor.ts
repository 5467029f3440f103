import { once } from "node:events";
import type { Socket } from "node:net";
import { Worker } from "node:worker_threads";
import { parseAddress } from "../channels/address.ts";
import { connector, descriptorOf, listen, stopReading } from "../channels/connection.ts";
import type { FloorTask } from "./fault-floor-worker.ts";

const LIMIT_MS = 10_000;

/**
 * The least that a page fault over a network takes: a thread writes a request and is blocked until a
 * page has come back from a thread that was blocked until the request came. Nothing else goes on.
 */
export async function answerFloor(count: number): Promise<{
  address: string;
  finished: Promise<unknown>;
}> {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  const answer = async (): Promise<void> => {
    const { reader, close } = await listener.next(LIMIT_MS);
    listener.close();
    await runThread({ side: "answer", fd: blocking(reader as Socket), count });
    close();
  };
  const finished = answer();
  finished.catch(() => {}); // Whoever asks for its end gets it.
  return { address: listener.address, finished };
}

/** Microseconds that each request took. */
export async function askFloor(address: string, count: number): Promise<Float64Array> {
  const { reader, close } = await connector(parseAddress(address)).connect(1, LIMIT_MS);
  const times = await runThread({ side: "ask", fd: blocking(reader as Socket), count });
  close();
  return times;
}

/** Reads and writes of its descriptor wait in the kernel from now on, which the engine's never do. */
function blocking(socket: Socket): number {
  stopReading(socket);
  (socket as unknown as { _handle: { setBlocking(on: boolean): void } })._handle.setBlocking(true);
  return descriptorOf(socket);
}

async function runThread(task: Omit<FloorTask, "times">): Promise<Float64Array> {
  const times = new Float64Array(new SharedArrayBuffer(task.count * 8));
  const worker = new Worker(new URL("./fault-floor-worker.ts", import.meta.url), {
    workerData: { ...task, times } satisfies FloorTask,
  });
  await once(worker, "exit");
  return times;
}
