import { execFileSync } from "node:child_process";
import { readSync, writeSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { nowMs } from "../base/clock.ts";
import { HEADER_BYTES } from "../channels/frame.ts";
import { REQUEST_BYTES } from "../channels/messages.ts";
import { threadNumber } from "../workers/thread-number.ts";
import { PAGE_BYTES } from "./workloads.ts";

/** One of two threads that take turns: a request one way, a page the other. */
export interface FloorTask {
  readonly side: "ask" | "answer";
  readonly fd: number;
  readonly count: number;
  /** Before each request. */
  readonly pauseMs: number;
  /** The only one that it may run on; null for any. */
  readonly processor: number | null;
  /** By request, in microseconds. */
  readonly times: Float64Array;
}

/** The first ones wait for the other thread to start. */
const WARMUPS = 50;

const { side, fd, count, pauseMs, processor, times } = workerData as FloorTask;
if (processor !== null) {
  const [cpu, thread] = [String(processor), String(threadNumber())];
  execFileSync("taskset", ["--cpu-list", "--pid", cpu, thread], { stdio: "ignore" });
}
const request = new Uint8Array(HEADER_BYTES + REQUEST_BYTES);
const page = new Uint8Array(HEADER_BYTES + PAGE_BYTES);
const pauses = new Int32Array(new SharedArrayBuffer(4));
for (let turn = -WARMUPS; turn < count; turn += 1) {
  if (side === "ask" && pauseMs > 0) Atomics.wait(pauses, 0, 0, pauseMs);
  const startMs = nowMs();
  if (side === "ask") {
    writeSync(fd, request);
    readWhole(page);
    if (turn >= 0) times[turn] = (nowMs() - startMs) * 1000;
  } else {
    readWhole(request);
    writeSync(fd, page);
  }
}

function readWhole(target: Uint8Array): void {
  for (let at = 0; at < target.length; ) {
    const bytes = readSync(fd, target, at, target.length - at, null);
    if (bytes === 0) throw new Error("the other end closed");
    at += bytes;
  }
}
