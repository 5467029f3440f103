import { expect, test } from "vitest";
import { DeltaChoice } from "../workers/delta-choice.ts";

const CHUNK = 7;

/** In which of the rounds the chunk is tried, if each try comes to `outcome`. */
function triedRounds(
  choice: DeltaChoice,
  rounds: number,
  outcome: (round: number) => { hits: number; overflows: number },
): number[] {
  const tried: number[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    if (!choice.mayTry({ chunk: CHUNK, round })) continue;
    tried.push(round);
    choice.learn({ chunk: CHUNK, round }, outcome(round));
  }
  return tried;
}

test("a chunk in which all changes is left alone for a round, then two, four, and no more than 16", () => {
  const tried = triedRounds(new DeltaChoice(), 80, () => ({ hits: 100, overflows: 100 }));
  expect(tried).toEqual([1, 3, 6, 11, 20, 37, 54, 71]);
});

test("one in which some changes is always tried, and so is one of which nothing is known", () => {
  const every = Array.from({ length: 30 }, (_, index) => index + 1);
  for (const outcome of [
    { hits: 100, overflows: 75 },
    { hits: 100, overflows: 0 },
    { hits: 0, overflows: 0 },
    { hits: 7, overflows: 7 },
  ]) {
    expect(triedRounds(new DeltaChoice(), 30, () => outcome)).toEqual(every);
  }
});

test("one good round is enough to be tried again, and the next bad one begins anew", () => {
  const tried = triedRounds(new DeltaChoice(), 12, (round) => ({
    hits: 10,
    overflows: round === 6 ? 0 : 10,
  }));
  expect(tried).toEqual([1, 3, 6, 7, 9, 12]);
});

test("within a round a chunk is all tried, or all left alone", () => {
  const choice = new DeltaChoice();
  const bad = { hits: 10, overflows: 10 };
  for (let piece = 0; piece < 5; piece += 1) {
    expect(choice.mayTry({ chunk: CHUNK, round: 1 })).toBe(true);
    choice.learn({ chunk: CHUNK, round: 1 }, bad);
  }
  expect(choice.mayTry({ chunk: CHUNK, round: 2 })).toBe(false);
  expect(choice.mayTry({ chunk: CHUNK, round: 3 })).toBe(true);
});

test("chunks are known apart", () => {
  const choice = new DeltaChoice();
  choice.learn({ chunk: 1, round: 1 }, { hits: 10, overflows: 10 });
  expect(choice.mayTry({ chunk: 1, round: 2 })).toBe(false);
  expect(choice.mayTry({ chunk: 2, round: 2 })).toBe(true);
});
