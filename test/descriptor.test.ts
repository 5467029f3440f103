import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, expect, test } from "vitest";
import { nowMs } from "../base/clock.ts";
import { type DescriptorOptions, readSome, Stopped, writeAll } from "../channels/descriptor.ts";
import type { DrainTask } from "./fixtures/wire-drain.ts";
import { SocketPairs, shut, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

const CHANNEL = 2;
const ALL = { least: 4, isIdle: false };

function optionsOf(fd: number, limitMs = 10_000): DescriptorOptions {
  const stop = new Int32Array(new SharedArrayBuffer(4));
  return { fd, channel: CHANNEL, stop, limitMs };
}

async function makeEnds(limitMs?: number) {
  const { near, far } = await pairs.make();
  const ends = { near: threadDescriptorOf(near), far: threadDescriptorOf(far) };
  return { far, near: optionsOf(ends.near, limitMs), other: optionsOf(ends.far, limitMs) };
}

test("bytes that are there are read without waiting, as many as fit", async () => {
  const { near, other } = await makeEnds();
  expect(writeAll(near, Uint8Array.from([1, 2, 3, 4, 5, 6]))).toBe(0);
  const target = new Uint8Array(5);
  const { bytes, waitedMs } = readSome(other, target, ALL);
  expect([bytes, waitedMs]).toEqual([5, 0]);
  expect([...target]).toEqual([1, 2, 3, 4, 5]);
  const rest = new Uint8Array(8);
  expect(readSome(other, rest, { least: 1, isIdle: true }).bytes).toBe(1);
  expect(rest[0]).toBe(6);
});

test("nothing at all is written and read at once", async () => {
  const { near } = await makeEnds();
  expect(writeAll(near, new Uint8Array(0))).toBe(0);
  expect(readSome(near, new Uint8Array(0), { least: 0, isIdle: false }).bytes).toBe(0);
});

test(`more than any buffer holds goes through whole while the peer reads slowly (SEED=${seed})`, async () => {
  const { near, other } = await makeEnds();
  const source = new Uint8Array(4 * 2 ** 20);
  new Prng(seed).bytes(source);
  const target = new Uint8Array(new SharedArrayBuffer(source.length));
  const workerData: DrainTask = { fd: other.fd, stop: other.stop, target, pieceBytes: 30_011 };
  const url = new URL("./fixtures/wire-drain.ts", import.meta.url);
  const thread = new Worker(url, { workerData });
  const ended = once(thread, "exit");
  const sinceMs = nowMs();
  const waitedMs = writeAll(near, source);
  expect(waitedMs).toBeLessThanOrEqual(nowMs() - sinceMs);
  expect(await ended).toEqual([0]);
  expect(Buffer.compare(source, target)).toBe(0);
});

test("a peer that does not read is CHANNEL_STALLED after the limit", async () => {
  const { near } = await makeEnds(30);
  expect(() => writeAll(near, new Uint8Array(8 * 2 ** 20))).toThrow(
    expect.objectContaining({
      code: "CHANNEL_STALLED",
      facts: { channel: CHANNEL, direction: "write", limitMs: 30 },
    }),
  );
});

test("a peer that does not write is CHANNEL_STALLED after the limit, also in mid-frame", async () => {
  const { near, other } = await makeEnds(30);
  const stalled = expect.objectContaining({
    code: "CHANNEL_STALLED",
    facts: { channel: CHANNEL, direction: "read", limitMs: 30 },
  });
  expect(() => readSome(other, new Uint8Array(4), ALL)).toThrow(stalled);
  writeAll(near, Uint8Array.from([1]));
  expect(() => readSome(other, new Uint8Array(4), { least: 4, isIdle: true })).toThrow(stalled);
});

for (const isNotified of [true, false]) {
  const how = isNotified ? "with a notification" : "without a notification";

  test(`the stop word ends a wait that has no limit, ${how}`, async () => {
    const { other } = await makeEnds(1);
    await expectStopped(other, isNotified, () =>
      readSome(other, new Uint8Array(4), { least: 4, isIdle: true }),
    );
  });

  test(`the stop word ends a write to a peer that does not read, ${how}`, async () => {
    const { near } = await makeEnds(60_000);
    await expectStopped(near, isNotified, () => writeAll(near, new Uint8Array(8 * 2 ** 20)));
  });
}

async function expectStopped(
  { stop }: DescriptorOptions,
  isNotified: boolean,
  work: () => unknown,
): Promise<void> {
  const url = new URL("./fixtures/wire-stop.ts", import.meta.url);
  const thread = new Worker(url, { workerData: { stop, afterMs: 20, isNotified } });
  const ended = once(thread, "exit");
  expect(work).toThrow(Stopped);
  await ended;
}

test("who is stopped already moves what can be moved and does not wait", async () => {
  const { near, other } = await makeEnds();
  Atomics.store(near.stop, 0, 1);
  writeAll(near, Uint8Array.from([1, 2, 3, 4]));
  Atomics.store(other.stop, 0, 1);
  expect(readSome(other, new Uint8Array(4), ALL).bytes).toBe(4);
  expect(() => readSome(other, new Uint8Array(4), ALL)).toThrow(Stopped);
});

test("a peer that closes between frames is CHANNEL_LOST, in a frame too, and says which", async () => {
  const reasons = [
    [0, { least: 4, isIdle: true }, "the other end closed it"],
    [0, { least: 4, isIdle: false }, "it ended in the middle of a frame"],
    [3, { least: 4, isIdle: true }, "it ended in the middle of a frame"],
  ] as const;
  for (const [sentBytes, want, reason] of reasons) {
    const { far, near, other } = await makeEnds();
    writeAll(other, new Uint8Array(sentBytes));
    await shut(far);
    expect(() => readSome(near, new Uint8Array(4), want)).toThrow(
      expect.objectContaining({ code: "CHANNEL_LOST", facts: { channel: CHANNEL, reason } }),
    );
  }
});

test("writing to a peer that closed is CHANNEL_LOST", async () => {
  const { far, near } = await makeEnds();
  await shut(far);
  expect(() => writeAll(near, new Uint8Array(4))).toThrow(
    expect.objectContaining({
      code: "CHANNEL_LOST",
      facts: { channel: CHANNEL, reason: expect.stringContaining("EPIPE") },
    }),
  );
});

test("a descriptor that is not open is CHANNEL_LOST, nothing else", () => {
  const options = optionsOf(2 ** 30);
  const lost = expect.objectContaining({
    code: "CHANNEL_LOST",
    facts: { channel: CHANNEL, reason: expect.stringContaining("EBADF") },
  });
  expect(() => writeAll(options, new Uint8Array(4))).toThrow(lost);
  expect(() => readSome(options, new Uint8Array(4), ALL)).toThrow(lost);
});
