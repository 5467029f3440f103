import { expect, test } from "vitest";
import { Stubbornness } from "../workers/stubbornness.ts";

/** Tries chunk `chunk` in each round; gives the rounds in which it was tried, and did not shrink. */
function triedRounds(stubbornness: Stubbornness, chunk: number, rounds: number): number[] {
  const tried: number[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    // Something else shrinks: only what is known of the chunk itself is looked at.
    stubbornness.learn({ chunk: -1, round }, true);
    const memory = { chunk, round };
    if (!stubbornness.mayTry(memory)) {
      // A skip that some failure before may have left over.
      if (!stubbornness.mayTry(memory)) continue;
    }
    tried.push(round);
    stubbornness.learn(memory, false);
  }
  return tried;
}

test("a chunk that does not shrink is left alone for more and more rounds, but not for ever", () => {
  const tried = triedRounds(new Stubbornness(), 7, 120);
  const gaps = tried.slice(1).map((round, index) => round - (tried[index] ?? 0));
  expect(tried[0]).toBe(1);
  expect(gaps).toEqual([2, 3, 5, 9, 17, 17, 17, 17, 17]);
});

test("a chunk that shrinks again is tried in every round again", () => {
  const stubbornness = new Stubbornness();
  stubbornness.learn({ chunk: 3, round: 1 }, false);
  expect(stubbornness.mayTry({ chunk: 3, round: 2 })).toBe(false);
  expect(stubbornness.mayTry({ chunk: 3, round: 3 })).toBe(true);
  stubbornness.learn({ chunk: 3, round: 3 }, true);
  for (let round = 3; round < 10; round += 1) {
    expect(stubbornness.mayTry({ chunk: 3, round })).toBe(true);
  }
});

test("a failure of one chunk says nothing of others once something has shrunk", () => {
  const stubbornness = new Stubbornness();
  stubbornness.learn({ chunk: 1, round: 1 }, false);
  stubbornness.learn({ chunk: 2, round: 1 }, true);
  expect(stubbornness.mayTry({ chunk: 1, round: 2 })).toBe(false);
  for (let chunk = 2; chunk < 50; chunk += 1) {
    expect(stubbornness.mayTry({ chunk, round: 1 })).toBe(true);
  }
});

test("one payload that does not shrink says nothing of its chunk's others in the round", () => {
  const stubbornness = new Stubbornness();
  for (const hasShrunk of [false, true, false]) {
    expect(stubbornness.mayTry({ chunk: 5, round: 1 })).toBe(true);
    stubbornness.learn({ chunk: 5, round: 1 }, hasShrunk);
  }
  expect(stubbornness.mayTry({ chunk: 5, round: 1 })).toBe(true);
  expect(stubbornness.mayTry({ chunk: 5, round: 2 })).toBe(false);
});

test("while nothing shrinks only a sample is tried, and never nothing", () => {
  const stubbornness = new Stubbornness();
  const skips: number[] = [];
  let skipped = 0;
  for (let chunk = 0; skips.length < 8; chunk += 1) {
    const memory = { chunk, round: 1 };
    if (stubbornness.mayTry(memory)) {
      skips.push(skipped);
      skipped = 0;
      stubbornness.learn(memory, false);
    } else {
      skipped += 1;
    }
  }
  expect(skips).toEqual([0, 0, 1, 3, 7, 15, 15, 15]);
});

test("after memory that does not shrink, the next that does is found within a few payloads", () => {
  const stubbornness = new Stubbornness();
  for (let chunk = 0; chunk < 10_000; chunk += 1) {
    const memory = { chunk, round: 1 };
    if (stubbornness.mayTry(memory)) stubbornness.learn(memory, false);
  }
  let missed = 0;
  while (!stubbornness.mayTry({ chunk: 10_000 + missed, round: 1 })) missed += 1;
  expect(missed).toBeLessThanOrEqual(15);
});
