import { expect, test } from "vitest";
import { PAYLOAD_BYTES_MAX } from "../channels/frame.ts";
import { FRAME_BYTES, FrameLength } from "../workers/frame-length.ts";

const { precopy: FULL, calm: CALM, awaited: SHORT } = FRAME_BYTES;

test("frames are short from the beginning of post-copy on, and longer when nobody asks", () => {
  const length = new FrameLength();
  const next = (nowMs: number) => length.next({ isPostcopy: true, faults: 0, nowMs });
  expect([1000, 1005, 1009.9, 1010, 5000].map(next)).toEqual([SHORT, SHORT, SHORT, CALM, CALM]);
});

test("every fault makes them short again", () => {
  const length = new FrameLength();
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
  expect(seen.map(next)).toEqual([SHORT, CALM, SHORT, SHORT, SHORT, SHORT, CALM, SHORT]);
});

test("before post-copy faults do not count", () => {
  const length = new FrameLength();
  expect(length.next({ isPostcopy: false, faults: 7, nowMs: 0 })).toBe(FULL);
  expect(length.next({ isPostcopy: true, faults: 7, nowMs: 1000 })).toBe(SHORT);
});

test("they grow shorter from one to the next, and none is longer than the protocol has it", () => {
  expect(FULL.straight).toBe(PAYLOAD_BYTES_MAX);
  expect(FULL.straight).toBeGreaterThan(CALM.straight);
  expect(CALM.straight).toBeGreaterThan(SHORT.straight);
});
