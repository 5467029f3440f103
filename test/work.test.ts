import { expect, test } from "vitest";
import { partOf, Work } from "../engine/work.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const ALL = { block: 0, part: "all" } as const;

function workOf(chunks: readonly number[], channel = 1): Work {
  const work = new Work();
  for (const chunk of chunks) work.add(channel, ALL, chunk, 10);
  return work;
}

test("a batch is of one block, as many chunks as make the bytes, and they are gone from the queue", () => {
  const work = workOf([1, 2, 3, 4]);
  work.add(1, { block: 1, part: "rest" }, 0, 7);
  expect(work.queuedBytes(1)).toBe(47);
  expect(work.take(1, 25, 100)).toMatchObject({ block: 0, chunks: [1, 2, 3], bytes: [10, 10, 10] });
  expect(work.take(1, 25, 100)).toMatchObject({ block: 0, chunks: [4] });
  expect(work.take(1, 25, 100)).toMatchObject({ block: 1, part: "rest", chunks: [0], bytes: [7] });
  expect(work.take(1, 25, 100)).toBe(null);
  expect(work.isEmpty).toBe(true);
  expect(work.queuedBytes(1)).toBe(0);
});

test("what is moved comes from the end of a queue, and rises all the same", () => {
  const work = workOf([1, 2, 3, 4, 5]);
  work.move(1, 2, 25);
  expect(work.take(2, 1000, 100)).toMatchObject({ chunks: [3, 4, 5] });
  expect(work.take(1, 1000, 100)).toMatchObject({ chunks: [1, 2] });
});

test("what a thread has not begun is the next to be given", () => {
  const work = workOf([1, 2, 3, 4]);
  const batch = work.take(1, 25, 100);
  if (batch === null) throw new Error("there was work");
  work.putBack(1, partOf(batch, 1));
  expect(work.take(1, 15, 100)).toMatchObject({ chunks: [2, 3] });
  expect(work.take(1, 15, 100)).toMatchObject({ chunks: [4] });
});

test(`every chunk is given once and batches rise, whatever is moved meanwhile (SEED=${seed})`, () => {
  for (let run = 0; run < 200; run += 1) {
    const random = new Prng((seed + run) % 2 ** 32);
    const work = new Work();
    const wanted = new Set<string>();
    for (let block = 0; block < 3; block += 1) {
      for (let chunk = 0; chunk < random.below(60); chunk += 1) {
        work.add(1 + random.below(4), { block, part: "all" }, chunk, random.below(100));
        wanted.add(`${block}/${chunk}`);
      }
    }
    const given: string[] = [];
    while (!work.isEmpty) {
      const [one, other] = [1 + random.below(4), 1 + random.below(4)];
      const deed = random.below(4);
      if (deed === 0 && one !== other) work.move(one, other, random.below(500));
      if (deed === 1) work.drain(one, () => other);
      if (deed < 2) continue;
      const batch = work.take(one, random.below(400), 1 + random.below(20));
      if (batch === null) continue;
      const begun = random.below(batch.chunks.length + 1);
      expect(batch.chunks).toEqual(batch.chunks.toSorted((a, b) => a - b));
      for (const chunk of batch.chunks.slice(0, begun)) given.push(`${batch.block}/${chunk}`);
      work.putBack(one, partOf(batch, begun));
    }
    expect(given.length).toBe(wanted.size);
    expect(new Set(given)).toEqual(wanted);
  }
});
