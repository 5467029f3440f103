import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import {
  closeLane,
  createLaneState,
  endLane,
  failLane,
  goesOn,
  isOver,
  isServerGone,
  leaveLane,
  legOf,
  openLane,
  placeOf,
  takeLane,
  Waited,
} from "../workers/lane-state.ts";
import { threadNumber } from "../workers/thread-number.ts";

/** What the threads share that serve a lane by turns. Which thread calls is for them to say. */
const PLACE = {
  channel: 3,
  readFd: 17,
  writeFd: 18,
  readSequence: 2 ** 32 - 1,
  writeSequence: 2 ** 31,
  isDeep: true,
};

/** Larger than Linux lets any thread's number be. */
const NOBODY = 2 ** 30;

test("one thread at a time serves a lane, and none before it has a connection or after it was closed", () => {
  const state = createLaneState();
  expect(takeLane(state, 1)).toBe(false);
  openLane(state, PLACE);
  expect(placeOf(state)).toEqual(PLACE);
  expect(takeLane(state, threadNumber())).toBe(true);
  expect(takeLane(state, threadNumber())).toBe(false);
  expect(closeLane(state)).toBe(false);
  expect(isServerGone(state)).toBe(false);
  leaveLane(state);
  expect(closeLane(state)).toBe(true);
  expect(closeLane(state)).toBe(true);
  expect(takeLane(state, 1)).toBe(false);
});

test("a connection begins anew, whatever became of the one before it", () => {
  const state = createLaneState();
  expect(legOf(state)).toBe(0);
  openLane(state, PLACE);
  new Waited(state).add(0, 5, 1);
  endLane(state);
  expect(isOver(state)).toBe(true);
  closeLane(state);
  openLane(state, { ...PLACE, readFd: 20 });
  expect(legOf(state)).toBe(2);
  expect(placeOf(state).readFd).toBe(20);
  expect([isOver(state), goesOn(state), new Waited(state).count]).toEqual([false, true, 0]);
});

test("a server that is no more keeps others away, and is told from one that takes long", () => {
  const state = createLaneState();
  openLane(state, PLACE);
  expect(isServerGone(state)).toBe(false);
  takeLane(state, NOBODY);
  expect(isServerGone(state)).toBe(true);
  expect(takeLane(state, threadNumber())).toBe(false);
  expect(closeLane(state)).toBe(true);
  expect(isServerGone(state)).toBe(false);
});

test("what one thread fails of, the next one learns, word for word", () => {
  const state = createLaneState();
  openLane(state, PLACE);
  const failure = new MigrationError("CHANNEL_LOST", { channel: 3, reason: "é".repeat(3000) });
  failLane(state, failure);
  expect(goesOn(state)).toBe(false);
  expect(() => isOver(state)).toThrow(
    expect.objectContaining({ code: "CHANNEL_LOST", message: expect.stringContaining("ééé") }),
  );
});

test("what was asked for is struck out once it is there, in its order, and is never more than fits", () => {
  const state = createLaneState();
  openLane(state, PLACE);
  const waited = new Waited(state);
  expect(waited.oldestMs).toBe(null);
  const last = 2 ** 32 - 1;
  for (const [page, askedMs] of [
    [7, 10],
    [last, 20],
    [9, 30],
  ] as const) {
    waited.add(page === 9 ? 1 : 0, page, askedMs);
  }
  const struck: number[] = [];
  waited.strike(
    (block, page) => (block === 0 && page === 7) || (block === 1 && page === 9),
    (askedMs) => struck.push(askedMs),
  );
  expect(struck).toEqual([10, 30]);
  expect([waited.count, waited.oldestMs]).toEqual([1, 20]);
  for (let more = 0; more < 5000; more += 1) waited.add(0, more, 40);
  expect(waited.count).toBe(1024);
  waited.strike(
    () => true,
    () => {},
  );
  expect(waited.count).toBe(0);
});
