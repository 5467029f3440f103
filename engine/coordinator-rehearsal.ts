import { randomUUID } from "node:crypto";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { connector, listen } from "../channels/connection.ts";
import { PAGES_PER_WORD, takeWords, wordCountFor } from "../workers/dirty-words.ts";
import type { ReceiveTask, SendSetup, SendTask, TaskDone } from "../workers/protocol.ts";
import { migrateIn } from "./destination.ts";
import { createDirtyLog } from "./dirty-log.ts";
import type { DestinationHost, SourceHost } from "./host.ts";
import { Lanes } from "./lanes.ts";
import type { ParameterOptions } from "./parameters.ts";
import { ReadyThreads } from "./ready-threads.ts";
import { migrateOut } from "./source.ts";
import type { Surroundings, ThreadPool } from "./surroundings.ts";

/** Of memory that nobody reads or writes, so it takes none. */
const RAM = { name: "ram", sizeBytes: 64 * MIB, pageBytes: 4 * KIB } as const;

/** Nothing takes so long within one process. */
const LIMIT_MS = 2000;

const LIMITS: ParameterOptions = {
  acceptTimeoutMs: LIMIT_MS,
  connectTimeoutMs: LIMIT_MS,
  stepTimeoutMs: LIMIT_MS,
  reconnectTimeoutMs: 0,
};

/** As most migrations have, and a round after the first. */
const TERMS: ParameterOptions = {
  ...LIMITS,
  channels: 2,
  downtimeLimitMs: 1,
  maxRounds: 2,
  nonConvergence: "switch-over",
};

/** Once is enough for a process. */
let isDone = false;

/**
 * Plays both ends of a migration, over connections of its own and with threads that move nothing: V8
 * compiles what the coordinator does when it does it for the first time, which else is while a guest
 * waits for it. Returns when nothing of it is left. Throws where it cannot be done, or soon after it was
 * `cancelled`, and the engine may be used all the same.
 */
export async function rehearseCoordinator(cancelled: AbortSignal): Promise<void> {
  if (isDone) return;
  cancelled.throwIfAborted();
  const token = randomUUID();
  const listening = Promise.withResolvers<string>();
  const common = { signal: cancelled, onPhase() {}, onMigration() {}, onProgress() {} };
  const arriving = migrateIn(
    destinationOf(token),
    "tcp:127.0.0.1:0",
    { ...LIMITS, ...common, onListening: listening.resolve },
    PRETENDED,
  );
  arriving.catch(listening.reject);
  const leaving = listening.promise.then((address) =>
    migrateOut(sourceOf(token), address, { ...TERMS, ...common }, PRETENDED),
  );
  for (const end of await Promise.allSettled([arriving, leaving])) {
    if (end.status === "rejected") throw end.reason;
  }
  isDone = true;
}

const PRETENDED: Surroundings = {
  connector,
  listen,
  readyThreads: (side) => new ReadyThreads(side, 0),
  startThreads: ({ setup }) => new PretendThreads(setup as SendSetup),
  startLanes: (setups, terms) => new Lanes(setups, terms),
};

/** Whatever they are told to move is there. */
class PretendThreads implements ThreadPool {
  readonly #setup: SendSetup;

  constructor(setup: SendSetup) {
    this.#setup = setup;
  }

  async begun(): Promise<void> {}

  async run(_channel: number, task: object): Promise<TaskDone> {
    const { kind, ...order } = task as SendTask | ReceiveTask;
    if (kind !== "send") return { pages: 0 };
    const { block, chunks } = order as SendTask & { kind: "send" };
    return { pages: this.#take(block, chunks), left: 0 };
  }

  async close(): Promise<boolean> {
    return true;
  }

  #take(index: number, chunks: readonly number[]): number {
    const block = must(this.#setup.blocks[index], "a task names a block");
    const words = new Int32Array(block.pagesPerChunk / PAGES_PER_WORD);
    let pages = 0;
    for (const chunk of chunks) {
      const first = chunk * words.length;
      const taken = words.subarray(0, wordCountFor(block.pageCount) - first);
      pages += takeWords(block.dirty, first, taken);
    }
    return pages;
  }
}

function memory() {
  return {
    ...RAM,
    place: { kind: "shared", buffer: new SharedArrayBuffer(RAM.sizeBytes) },
  } as const;
}

function sourceOf(token: string): SourceHost {
  return {
    blocks: [memory()],
    description: token,
    startDirtyLog: async () => [createDirtyLog(RAM.name, RAM)],
    stopDirtyLog: async () => {},
    pause: async () => {},
    resume: async () => {},
    saveDevices: async () => [{ name: "device", bytes: new Uint8Array(1) }],
  };
}

/** Whoever else comes keeps the guest. */
function destinationOf(token: string): DestinationHost {
  return {
    async prepare(_blocks, description) {
      if (description !== token) throw new Error("this is no guest of mine");
      return [{ ...memory(), pristine: true }];
    },
    loadDevices: async () => {},
    resume: async () => {},
    discard: async () => {},
  };
}
