import { expect, test } from "vitest";
import { CHANNELS_MAX } from "../channels/frame.ts";
import { generationOf, isRecent } from "../workers/generation.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const SEQUENCES = 2 ** 26;

test("a generation is the channel and the lowest 26 bits of the sequence", () => {
  expect(generationOf(1, 1)).toBe(1);
  expect(generationOf(1, SEQUENCES + 5)).toBe(5);
  expect(generationOf(2, 0)).toBe(SEQUENCES);
  expect(generationOf(CHANNELS_MAX, 2 ** 32 - 1)).toBe(2 ** 32 - 1);
  expect(() => generationOf(0, 1)).toThrow("bulk channels");
  expect(() => generationOf(CHANNELS_MAX + 1, 1)).toThrow("bulk channels");
});

test(`frames of different channels, and neighbours of one, never share a generation (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const seen = new Map<number, string>();
  for (let run = 0; run < 20_000; run += 1) {
    const channel = 1 + random.below(CHANNELS_MAX);
    const sequence = random.below(SEQUENCES);
    const generation = generationOf(channel, sequence);
    expect(generation).toBeLessThan(2 ** 32);
    const name = `${channel}/${sequence}`;
    expect(seen.get(generation) ?? name).toBe(name);
    seen.set(generation, name);
  }
});

test(`a base may be used until half of the numbers have gone by, also around their end (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 5000; run += 1) {
    const channel = 1 + random.below(CHANNELS_MAX);
    const sequence = 1 + random.below(2 ** 32 - 2);
    const base = generationOf(channel, sequence);
    if (base === 0) continue;
    const after = (frames: number) => generationOf(channel, (sequence + frames) % 2 ** 32);
    for (const frames of [0, 1, 1000, SEQUENCES / 2 - 1]) {
      expect(isRecent(base, after(frames)), `${frames} frames later`).toBe(true);
    }
    for (const frames of [SEQUENCES / 2, SEQUENCES - 1]) {
      expect(isRecent(base, after(frames)), `${frames} frames later`).toBe(false);
    }
  }
});

test("the generation that means none is never recent", () => {
  for (const current of [0, 1, SEQUENCES / 4, SEQUENCES - 1]) {
    expect(isRecent(0, current)).toBe(false);
  }
});
