import { once } from "node:events";
import { parentPort, workerData } from "node:worker_threads";
import { must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import {
  type FaultBlock,
  type FaultDoor,
  isPresent,
  openFaults,
  prepareFaults,
} from "../engine/faults.ts";

/**
 * A vCPU that does nothing but touch pages at random, and takes down how long it waited. It says when it
 * knows its part, gets its door in a message, when the guest goes over, and says when it has opened that.
 */
export interface ToucherTask {
  readonly seed: number;
  readonly pauseMs: number;
  /** Word 0: how many times were taken down; word 1: 1 when it shall end; word 2: 1 when the guest runs. */
  readonly words: Int32Array;
  /** Microseconds. */
  readonly times: Float64Array;
}

const FAULT_WAIT_MS = 5000;
/** So many pages in a row that are there mean that hardly any is missing. */
const TRIES_MAX = 2000;

const { seed, pauseMs, words, times } = workerData as ToucherTask;
const port = must(parentPort, "it is a thread");
void prepareFaults().then(() => port.postMessage("prepared"));
const [door] = (await once(port, "message")) as [FaultDoor];
const { pageCount } = door.blocks[0] as FaultBlock;
const faults = await openFaults(door);
port.postMessage("ready");
Atomics.wait(words, 2, 0);
let state = seed;
let tries = 0;
for (let count = 0; count < times.length && tries < TRIES_MAX && Atomics.load(words, 1) === 0; ) {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  const page = Math.floor((state / 2 ** 32) * pageCount);
  tries += 1;
  if (isPresent(door, 0, page)) continue;
  tries = 0;
  const startMs = nowMs();
  if (!faults.awaitPage({ seat: 0, block: 0, page }, FAULT_WAIT_MS))
    throw new Error("no page came");
  times[count] = (nowMs() - startMs) * 1000;
  count += 1;
  Atomics.store(words, 0, count);
  if (pauseMs > 0) Atomics.wait(words, 1, 0, pauseMs);
}
