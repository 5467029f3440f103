import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { expect, test } from "vitest";
import { type ClockTold, tellClock } from "./fixtures/clock-teller.ts";

/** The clocks are brought together by looks at both, between which a busy machine may do other things. */
const APART_MS = 5;

function expectCommon({ beforeMs, nowMs, afterMs }: ClockTold): void {
  expect(nowMs).toBeGreaterThan(beforeMs - APART_MS);
  expect(nowMs).toBeLessThan(afterMs + APART_MS);
}

test("every thread has the clock of process.hrtime, whenever it began", async () => {
  expectCommon(tellClock());
  for (let threads = 0; threads < 3; threads += 1) {
    const worker = new Worker(new URL("./fixtures/clock-teller.ts", import.meta.url));
    const [told] = (await once(worker, "message")) as [ClockTold];
    await worker.terminate();
    expectCommon(told);
  }
});

test("the clock never goes back", () => {
  let before = tellClock().nowMs;
  for (let looks = 0; looks < 10_000; looks += 1) {
    const { nowMs } = tellClock();
    expect(nowMs).toBeGreaterThanOrEqual(before);
    before = nowMs;
  }
});
