import { expect, onTestFinished, test } from "vitest";
import { useClock } from "../base/clock.ts";
import { sparing } from "../engine/sparing.ts";

const TICK_MS = 50;

/** How often it is called within ten seconds of ticks, where each call takes `costMs`. */
function callsOf(costMs: number): number {
  let now = 0;
  const none = (): (() => void) => () => {};
  onTestFinished(useClock({ nowMs: () => now, cpuMs: () => 0, after: none, every: none }));
  let calls = 0;
  const tick = sparing(() => {
    calls += 1;
    now += costMs;
  });
  // A tick that is late is not made up for.
  while (now < 10_000) {
    const before = now;
    tick();
    now = Math.max(now, before + TICK_MS);
  }
  return calls;
}

test("what costs little is called each time, what costs more takes a tenth of the time", () => {
  expect(callsOf(0)).toBe(200);
  expect(callsOf(5)).toBe(200);
  expect(callsOf(100)).toBe(10);
  expect(callsOf(1000)).toBe(1);
});
