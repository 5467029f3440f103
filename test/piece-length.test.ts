import { expect, test } from "vitest";
import { PieceLength, SHORT_PIECE_BYTES } from "../workers/piece-length.ts";
import { PIECE_BYTES } from "../workers/workbench.ts";

const [FULL, SHORT] = [PIECE_BYTES, SHORT_PIECE_BYTES];

test("frames are short from the beginning of post-copy on, and full again when nobody asks", () => {
  const length = new PieceLength();
  const next = (nowMs: number) => length.next({ isPostcopy: true, faults: 0, nowMs });
  expect([1000, 1005, 1009.9, 1010, 5000].map(next)).toEqual([SHORT, SHORT, SHORT, FULL, FULL]);
});

test("every fault makes them short again", () => {
  const length = new PieceLength();
  const next = ([faults, nowMs]: readonly [number, number]) =>
    length.next({ isPostcopy: true, faults, nowMs });
  const seen = [
    [0, 0],
    [0, 20],
    [1, 21],
    [1, 30],
    [2, 31],
    [2, 40.9],
    [2, 41],
    // The count has wrapped.
    [-5, 42],
  ] as const;
  expect(seen.map(next)).toEqual([SHORT, FULL, SHORT, SHORT, SHORT, SHORT, FULL, SHORT]);
});

test("before post-copy faults do not count", () => {
  const length = new PieceLength();
  expect(length.next({ isPostcopy: false, faults: 7, nowMs: 0 })).toBe(FULL);
  expect(length.next({ isPostcopy: true, faults: 7, nowMs: 1000 })).toBe(SHORT);
});
