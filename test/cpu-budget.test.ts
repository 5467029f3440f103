import { expect, test } from "vitest";
import { CpuBudget } from "../workers/cpu-budget.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** What is spent before anything went by. */
const BURST_MS = 20;

/**
 * A channel that would compress every frame. A frame takes `frameMs` without and `codecMs` more with
 * compression; gives what was spent, and the time that went by.
 */
function busyChannel(
  budget: CpuBudget,
  work: { share: number; frameMs: number; codecMs: number; frames: number; jitter: () => number },
): { spentMs: number; elapsedMs: number; largestMs: number } {
  const startMs = 1_000_000;
  let [nowMs, spentMs, largestMs] = [startMs, 0, 0];
  for (let frame = 0; frame < work.frames; frame += 1) {
    nowMs += work.frameMs * work.jitter();
    if (!budget.allows(work.share, nowMs)) continue;
    const costMs = work.codecMs * work.jitter();
    budget.spend(costMs);
    spentMs += costMs;
    nowMs += costMs;
    largestMs = Math.max(largestMs, costMs);
  }
  return { spentMs, elapsedMs: nowMs - startMs, largestMs };
}

test(`compression takes its share of the time and no more, whatever frames cost (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const jitter = () => 0.5 + random.below(1000) / 1000;
  for (const share of [0.01, 0.1, 0.25, 0.5, 0.9]) {
    for (const frameMs of [0.1, 1, 10, 3000]) {
      for (const codecMs of [0.5, 5, 200]) {
        const where = `share ${share}, frames of ${frameMs} ms, compression ${codecMs} ms`;
        const work = { share, frameMs, codecMs, frames: 50_000, jitter };
        const { spentMs, elapsedMs, largestMs } = busyChannel(new CpuBudget(), work);
        expect(spentMs, where).toBeLessThanOrEqual(elapsedMs * share + BURST_MS + largestMs);
        // Where compressing all would take more than the share, the share is used.
        if (codecMs / (codecMs + frameMs) < share * 1.2) continue;
        expect(spentMs, where).toBeGreaterThan(elapsedMs * share * 0.9 - largestMs);
      }
    }
  }
});

test("without a limit everything may be spent", () => {
  const budget = new CpuBudget();
  for (let ms = 0; ms < 1000; ms += 1) {
    expect(budget.allows(0, ms)).toBe(true);
    budget.spend(1000);
  }
});

test("what was spent without a limit is not held against a limit that comes later", () => {
  const budget = new CpuBudget();
  for (let ms = 0; ms < 100; ms += 1) {
    budget.allows(0, ms);
    budget.spend(1000);
  }
  budget.allows(0, 100);
  expect(budget.allows(0.1, 101)).toBe(true);
});

test("a budget that was not used is not saved up", () => {
  const budget = new CpuBudget();
  const hourMs = 3_600_000;
  budget.allows(0.5, 0);
  expect(budget.allows(0.5, hourMs)).toBe(true);
  budget.spend(BURST_MS + 10);
  expect(budget.allows(0.5, hourMs)).toBe(false);
  expect(budget.allows(0.5, hourMs + 19)).toBe(false);
  expect(budget.allows(0.5, hourMs + 21)).toBe(true);
});
