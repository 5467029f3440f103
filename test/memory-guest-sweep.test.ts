import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import { firstState, pageAt, sweepsOf, writesOf } from "../hosts/memory-guest/sweep.ts";
import { PATTERNS, smallShape } from "./fixtures/memory-guest-shapes.ts";

const COUNTS = [2, 3, 4, 5, 9, 10, 11, 64, 100, 618, 1000, 4096];

function sweepsFor(pattern: (typeof PATTERNS)[number], pageCount: number) {
  return sweepsOf(must(smallShape(1, { pattern, firstPage: 7, pageCount }).vcpus[0], "one vCPU"));
}

for (const pattern of PATTERNS) {
  test(`a round of pattern ${pattern} visits every page of the region once`, () => {
    for (const pageCount of COUNTS) {
      const visited = sweepsFor(pattern, pageCount).flatMap((sweep) =>
        Array.from({ length: sweep.pageCount }, (_, position) => pageAt(sweep, position)),
      );
      const region = Array.from({ length: pageCount }, (_, index) => 7 + index);
      expect(visited.toSorted((a, b) => a - b)).toEqual(region);
    }
  });

  test(`the writes of a page follow from the state of pattern ${pattern}`, () => {
    const pageCount = 30;
    const sweeps = sweepsFor(pattern, pageCount);
    const counts = new Map<number, number>();
    const state = structuredClone(firstState(sweeps)) as Mutable;
    for (let visit = 0; visit < 200; visit += 1) {
      const sweep = must(sweeps[state.turn], "a turn is a sweep's");
      const at = must(state.sweeps[state.turn], "a sweep has a state");
      const page = pageAt(sweep, at.position);
      counts.set(page, (counts.get(page) ?? 0) + 1);
      at.position = (at.position + 1) % sweep.pageCount;
      if (at.position === 0) at.round += 1;
      state.turn = (state.turn + 1) % sweeps.length;
      for (let p = 7; p < 7 + pageCount; p += 1) {
        expect(writesOf(sweeps, state, p)).toBe(counts.get(p) ?? 0);
      }
    }
  });
}

interface Mutable {
  turn: number;
  sweeps: { position: number; round: number }[];
}

test("a stride does not visit neighbours one after the other", () => {
  const sweep = must(sweepsFor("stride", 1000)[0], "a stride is one sweep");
  for (let position = 1; position < 1000; position += 1) {
    expect(Math.abs(pageAt(sweep, position) - pageAt(sweep, position - 1))).toBeGreaterThan(1);
  }
});

test("a hot tenth goes round nine times as often as the rest", () => {
  const [hot, rest] = sweepsFor("hot", 1000);
  expect([hot?.pageCount, rest?.pageCount]).toEqual([100, 900]);
});

test("a counter that wraps around stays a number of 32 bits", () => {
  const sweeps = sweepsFor("sweep", 10);
  const state = { turn: 0, sweeps: [{ position: 5, round: 2 ** 32 - 1 }] };
  expect([writesOf(sweeps, state, 7 + 4), writesOf(sweeps, state, 7 + 5)]).toEqual([
    0,
    2 ** 32 - 1,
  ]);
});

test("the largest region has an exact order", () => {
  const pageCount = 2 ** 26;
  const sweep = must(sweepsFor("stride", pageCount)[0], "a stride is one sweep");
  for (const position of [0, 1, 12_345_678, pageCount - 1]) {
    const page = pageAt(sweep, position);
    const exact = (BigInt(position) * BigInt(sweep.stride)) % BigInt(pageCount);
    expect(page).toBe(7 + Number(exact));
    expect(writesOf([sweep], { turn: 0, sweeps: [{ position, round: 0 }] }, page)).toBe(0);
  }
  expect(pageCount * 4 * KIB).toBe(2 ** 38);
});
