import { expect, onTestFinished, test, vi } from "vitest";
import { useClock } from "../base/clock.ts";
import { Stopped } from "../channels/descriptor.ts";
import { Idleness } from "../workers/lane-idle.ts";

/** A clock that goes forward by so much whenever it is looked at. */
function tick(ms: number): void {
  let now = 1;
  const never = () => () => {};
  const clock = { nowMs: () => (now += ms), cpuMs: () => 0, after: never, every: never };
  onTestFinished(useClock(clock));
}

/** Looks at once before it sleeps. */
function looksOf(idleness: Idleness): number {
  let looks = 0;
  while (idleness.looksAgain()) looks += 1;
  return looks;
}

const words = new Int32Array(new SharedArrayBuffer(4));

test("a lane looks again at once for a while, however fast its looks are", () => {
  for (const [lookMs, most] of [
    [0.0005, 10_010],
    [0.003, 1675],
    [0.05, 108],
  ] as const) {
    tick(4 * lookMs); // It looks at the clock once for four looks.
    const idleness = new Idleness(new Int32Array(words));
    expect(looksOf(idleness)).toBe(0);
    idleness.wake();
    const looks = looksOf(idleness);
    expect(looks).toBeGreaterThan(0);
    expect(looks).toBeLessThan(most);
  }
});

test("looks in vain are left out once, then twice, and not for long once they paid", () => {
  tick(0.01);
  const idleness = new Idleness(new Int32Array(words));
  const waits = (count: number): boolean[] =>
    Array.from({ length: count }, () => {
      idleness.wake();
      return looksOf(idleness) > 0;
    });
  expect(waits(8)).toEqual([true, false, true, false, false, true, false, false]);
  expect(waits(3)).toEqual([false, false, true]);
  while (!idleness.looksAgain()) idleness.wake();
  idleness.wake(); // Something came while it still looked.
  expect(waits(4)).toEqual([true, false, true, false]);
});

test("a lane that is stopped neither looks nor sleeps", () => {
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const idleness = new Idleness(stop);
  idleness.wake();
  expect(idleness.looksAgain()).toBe(true);
  Atomics.store(stop, 0, 1);
  expect(() => idleness.looksAgain()).toThrow(Stopped);
  expect(() =>
    idleness.rest({ on: { words: stop, index: 0, value: 0 }, isAsleep: false, isExpecting: true }),
  ).toThrow(Stopped);
});

test("a lane sleeps the shorter the sooner something may come", () => {
  let now = 1;
  const never = () => () => {};
  onTestFinished(useClock({ nowMs: () => now, cpuMs: () => 0, after: never, every: never }));
  const wait = vi.spyOn(Atomics, "wait").mockReturnValue("timed-out");
  onTestFinished(() => wait.mockRestore());
  const idleness = new Idleness(new Int32Array(words));
  const on = { words, index: 0, value: 0 };
  const sleeps = (how: { isAsleep?: boolean; isExpecting?: boolean } = {}): unknown => {
    idleness.rest({ on, isAsleep: false, isExpecting: true, ...how });
    return wait.mock.lastCall?.[3];
  };
  idleness.wake();
  expect([sleeps(), sleeps({ isExpecting: false })]).toEqual([0.015, 0.1]);
  now += 5;
  expect([sleeps(), sleeps({ isExpecting: false })]).toEqual([0.25, 2]);
  now += 5;
  expect([sleeps(), sleeps({ isExpecting: false })]).toEqual([0.5, 2]);
  now += 100;
  expect([sleeps(), sleeps({ isExpecting: false })]).toEqual([2, 2]);
  expect([sleeps({ isAsleep: true, isExpecting: false }), sleeps()]).toEqual([5, 2]);
  expect([sleeps({ isAsleep: true }), sleeps()], "it has just been woken").toEqual([5, 0.015]);
});
