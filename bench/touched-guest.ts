import { on, once } from "node:events";
import { Worker } from "node:worker_threads";
import { must } from "../base/assert.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import { createDirtyLog } from "../engine/dirty-log.ts";
import type { FaultDoor } from "../engine/faults.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";
import { orBits } from "../workers/dirty-words.ts";
import type { ToucherTask } from "./fault-toucher.ts";

interface Shape {
  readonly bytes: number;
  readonly pageBytes: number;
}

function blockOver(buffer: SharedArrayBuffer, { bytes, pageBytes }: Shape): Block {
  return { name: "ram", sizeBytes: bytes, pageBytes, place: { kind: "shared", buffer } };
}

/** A guest whose pages are all dirty again when it pauses, with the bytes that they had. */
export function rewrittenGuest(buffer: SharedArrayBuffer, shape: Shape): SourceHost {
  const block = blockOver(buffer, shape);
  const log = createDirtyLog(block.name, block);
  return {
    blocks: [block],
    startDirtyLog: async () => [log],
    stopDirtyLog: async () => {},
    pause: async () => {
      for (let page = 0; page < log.pageCount; page += 32) {
        const left = log.pageCount - page;
        orBits(log, page >>> 5, left >= 32 ? -1 : 2 ** left - 1);
      }
    },
    resume: async () => {},
    saveDevices: async () => [],
  };
}

/**
 * The memory that it comes to, with a thread that touches pages from the moment it runs. That starts with the
 * migration, unless it is `prepared` before.
 */
export class TouchedGuest implements DestinationHost {
  readonly #buffer: SharedArrayBuffer;
  readonly #faults: number;
  readonly #pauseMs: number;
  readonly #words = new Int32Array(new SharedArrayBuffer(12));
  readonly #times: Float64Array;
  #door: FaultDoor | null = null;
  #worker: Worker | null = null;
  #ended: Promise<unknown> = Promise.resolve();

  constructor(buffer: SharedArrayBuffer, { faults, pauseMs }: { faults: number; pauseMs: number }) {
    this.#buffer = buffer;
    this.#faults = faults;
    this.#pauseMs = pauseMs;
    this.#times = new Float64Array(new SharedArrayBuffer(Math.max(1, faults) * 8));
  }

  /** Its thread starts, and returns when it knows its part. */
  async prepared(): Promise<void> {
    if (this.#faults === 0) return;
    await messageOf(this.#startThread(), "prepared");
  }

  async prepare(announced: readonly BlockAnnouncement[]): Promise<readonly Block[]> {
    if (this.#faults > 0 && this.#worker === null) this.#startThread();
    const { sizeBytes, pageBytes } = must(announced[0], "a guest has memory");
    return [blockOver(this.#buffer, { bytes: sizeBytes, pageBytes })];
  }

  /** Where its pages are asked for, once a guest comes. */
  get door(): FaultDoor {
    return must(this.#door, "faults were offered");
  }

  takeFaults(door: FaultDoor): void {
    this.#door = door;
  }

  /** Its thread is ready before it runs. */
  async loadDevices(): Promise<void> {
    if (this.#worker === null) return;
    const ready = messageOf(this.#worker, "ready");
    this.#worker.postMessage(this.door);
    await ready;
  }

  #startThread(): Worker {
    const task: ToucherTask = {
      seed: 1,
      pauseMs: this.#pauseMs,
      words: this.#words,
      times: this.#times,
    };
    const worker = new Worker(new URL("./fault-toucher.ts", import.meta.url), { workerData: task });
    this.#worker = worker;
    this.#ended = once(worker, "exit");
    return worker;
  }

  async resume(): Promise<void> {
    Atomics.store(this.#words, 2, 1);
    Atomics.notify(this.#words, 2);
  }

  async discard(): Promise<void> {}

  /** Ends the thread. Microseconds that each touch of a missing page took. */
  async times(): Promise<number[]> {
    Atomics.store(this.#words, 1, 1);
    Atomics.notify(this.#words, 1);
    await this.#ended;
    return Array.from(this.#times.subarray(0, Atomics.load(this.#words, 0)));
  }
}

async function messageOf(worker: Worker, wanted: string): Promise<void> {
  for await (const [message] of on(worker, "message", { close: ["exit"] })) {
    if (message === wanted) return;
  }
  throw new Error(`the thread ended and was never ${wanted}`);
}
