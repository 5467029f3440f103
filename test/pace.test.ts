import { expect, test } from "vitest";
import { BURST_NS, pace } from "../workers/pace.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const SECOND_NS = 1_000_000_000n;

test("what is less than a burst goes at once", () => {
  const rate = 1_000_000_000n;
  const first = pace(0n, 77n, 1_000_000, rate);
  expect(first).toEqual({ word: 77n + 1_000_000n, waitNs: 0n });
  expect(pace(first.word, 77n, 1, rate).waitNs).toBe(0n);
});

test("what is more waits until all before it has drained to a burst", () => {
  const rate = 1_000_000n;
  const { word, waitNs } = pace(0n, 0n, 500_000, rate);
  expect(waitNs).toBe(0n);
  expect(word).toBe(SECOND_NS / 2n);
  expect(pace(word, 0n, 1, rate).waitNs).toBe(SECOND_NS / 2n - BURST_NS);
});

test("time in which nothing was sent is not saved up", () => {
  const rate = 1_000_000n;
  const { word } = pace(5n, SECOND_NS, 1000, rate);
  expect(word).toBe(SECOND_NS + 1_000_000n);
});

test(`together, channels never exceed the rate by more than a burst and a frame (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 50; run += 1) {
    const rate = BigInt(1 + random.below(2_000_000_000)) + 1000n;
    const frameBytes = 1 + random.below(600_000);
    // Each channel is ready for its next frame at some time, and takes its turn then.
    const channels = Array.from({ length: 1 + random.below(8) }, () => 0n);
    let word = 0n;
    let sentBytes = 0n;
    let lastNs = 0n;
    for (let frame = 0; frame < 400; frame += 1) {
      const [now = 0n] = channels.toSorted((left, right) => (left < right ? -1 : 1));
      const index = channels.indexOf(now);
      const bytes = 1 + random.below(frameBytes);
      const step = pace(word, now, bytes, rate);
      word = step.word;
      const sentAtNs = now + step.waitNs;
      channels[index] = sentAtNs + BigInt(random.below(100_000));
      sentBytes += BigInt(bytes);
      lastNs = lastNs > sentAtNs ? lastNs : sentAtNs;
      const allowed = ((lastNs + BURST_NS) * rate) / SECOND_NS + BigInt(bytes) + 400n;
      expect(sentBytes <= allowed, `run ${run}, frame ${frame}`).toBe(true);
    }
  }
});

test(`a channel that always has something to send reaches the rate (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const rate = BigInt(1_000_000 + random.below(1_000_000_000));
  let now = 0n;
  let word = 0n;
  let sentBytes = 0n;
  for (let frame = 0; frame < 1000; frame += 1) {
    const bytes = 1 + random.below(500_000);
    const step = pace(word, now, bytes, rate);
    word = step.word;
    now += step.waitNs;
    sentBytes += BigInt(bytes);
  }
  expect(sentBytes >= (now * rate) / SECOND_NS).toBe(true);
});
