import { expect, test } from "vitest";
import { Flow } from "../engine/flow.ts";
import { tooLate } from "../engine/rebalance.ts";

const MIB = 2 ** 20;
const LOOK_MS = 50;

/** A channel into buffers of so many bytes and a link behind them, looked at now and then. */
function flowOf(link: { bufferBytes: number; bytesPerMs: number }, ms: number): Flow {
  const flow = new Flow();
  flow.begin(0, 1000);
  for (let at = LOOK_MS; at <= ms; at += LOOK_MS) {
    flow.note(at, 1000 + link.bufferBytes + link.bytesPerMs * at);
  }
  return flow;
}

test("the rate is that of the link, and the backlog what buffers took before", () => {
  const flow = flowOf({ bufferBytes: 6 * MIB, bytesPerMs: 4000 }, 1500);
  const pace = flow.paceAt(1500);
  expect(pace?.movedBytesPerMs).toBeCloseTo(4000);
  expect(pace?.backlogMs).toBeCloseTo((6 * MIB) / 4000);
});

test("nothing is told of a channel before it was looked at for a while", () => {
  expect(flowOf({ bufferBytes: 0, bytesPerMs: 4000 }, 400).paceAt(400)).toBe(null);
  expect(new Flow().paceAt(1000)).toBe(null);
});

test("a channel that has ended works its backlog off", () => {
  const flow = flowOf({ bufferBytes: 4 * MIB, bytesPerMs: 4000 }, 1500);
  flow.end();
  flow.note(1600, 9 * MIB);
  const backlogMs = (4 * MIB) / 4000;
  expect(flow.paceAt(2000)?.backlogMs).toBeCloseTo(backlogMs - 500);
  expect(flow.paceAt(5000)?.backlogMs).toBe(0);
});

test("a rate that changes is known two seconds later", () => {
  const flow = flowOf({ bufferBytes: 0, bytesPerMs: 40_000 }, 3000);
  for (let at = 0; at <= 2000; at += LOOK_MS) {
    flow.note(3000 + at, 1000 + 40_000 * 3000 + 4000 * at);
  }
  expect(flow.paceAt(5000)?.movedBytesPerMs).toBeCloseTo(4000);
});

test("a channel that moves nothing any more is never done", () => {
  const flow = flowOf({ bufferBytes: 4 * MIB, bytesPerMs: 0 }, 1500);
  expect(flow.paceAt(1500)).toMatchObject({
    movedBytesPerMs: 0,
    backlogMs: Number.POSITIVE_INFINITY,
  });
});

const lane = (channel: number, bytesPerMs: number, backlogMs: number, leftBytes = 0) => {
  return { channel, bytesPerMs, backlogMs, leftBytes };
};

test("a slow channel is too late when the others could do all that is left before its backlog", () => {
  const others = [lane(1, 40_000, 100, 40e6), lane(3, 40_000, 100, 40e6)];
  // They take a second for what is theirs, and a little for what is its.
  expect(tooLate([...others, lane(2, 4000, 900, 8e6)])).toEqual([]);
  expect(tooLate([...others, lane(2, 4000, 1300, 8e6)])).toEqual([2]);
  expect(tooLate([...others, lane(2, 0, Number.POSITIVE_INFINITY, 8e6)])).toEqual([2]);
});

test("channels that are alike are never too late, whatever lies in buffers", () => {
  expect(tooLate([lane(1, 40_000, 2000), lane(2, 35_000, 100), lane(3, 30_000, 5000)])).toEqual([]);
});
