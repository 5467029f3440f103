import { expect, test } from "vitest";
import { Pace } from "../hosts/memory-guest/pace.ts";

/** A vCPU that takes no time to write, as often as it may, and oversleeps by `lateMs`. */
function written(pace: Pace, { forMs, lateMs = 0 }: { forMs: number; lateMs?: number }): number {
  let pages = 0;
  for (let now = 0; now <= forMs; ) {
    pace.advance(now);
    if (pace.pages === 0) {
      now += pace.waitMs + lateMs;
      continue;
    }
    pages += 1;
    pace.wrote(1);
  }
  return pages;
}

for (const rate of [1, 10, 999, 25_600]) {
  test(`${rate} pages a second are written, also by a vCPU that oversleeps`, () => {
    for (const lateMs of [0, 0.3]) {
      const pages = written(new Pace(rate), { forMs: 100_000, lateMs });
      expect(Math.abs(pages / (rate * 100) - 1)).toBeLessThan(0.011);
    }
  });
}

for (const percent of [1, 20, 50, 90, 99]) {
  test(`a throttle of ${percent} % takes that share of the writes`, () => {
    const pace = new Pace(10_000);
    pace.throttlePercent = percent;
    const pages = written(pace, { forMs: 20_000, lateMs: 0.1 });
    expect(Math.abs(pages / 200_000 - (1 - percent / 100))).toBeLessThan(0.02);
  });
}

test("a lifted throttle leaves no sleep owed", () => {
  const pace = new Pace(1000);
  pace.throttlePercent = 99;
  pace.advance(0);
  pace.advance(100);
  expect([pace.pages, pace.waitMs]).toEqual([0, 1000]);
  pace.throttlePercent = 0;
  pace.advance(101);
  expect(pace.pages).toBe(20);
});

test("an idle vCPU writes nothing and sleeps for a second at most", () => {
  const pace = new Pace(0);
  pace.advance(0);
  pace.advance(1e9);
  expect([pace.pages, pace.waitMs]).toEqual([0, 1000]);
});

test("what a busy machine kept from the vCPU is made up for, up to a limit", () => {
  const pace = new Pace(1000);
  pace.advance(0);
  pace.advance(15);
  expect(pace.pages).toBe(15);
  pace.advance(10_000);
  expect(pace.pages).toBe(20);
});

test("time does not pass for a vCPU that is stopped", () => {
  const pace = new Pace(1000);
  pace.advance(0);
  pace.advance(5);
  pace.stop();
  pace.advance(10_000);
  expect(pace.pages).toBe(5);
});
