import { readSync, writeSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { KIB } from "../base/units.ts";
import { HEADER_BYTES, PAGES_HEAD_BYTES, RUN_BYTES } from "../channels/frame.ts";
import { CounterRow } from "../workers/control.ts";
import { LaneSender } from "../workers/lane-sender.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "../workers/lane-words.ts";
import { createLatencies } from "../workers/latencies.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import { markPages, placeOf, sendBlockOf, sendSetupOf } from "./fixtures/wire-pipeline.ts";
import { bodyOf, frameBytes, KIND, u32 } from "./wire-peer.ts";

const PAGE_BYTES = 4 * KIB;
const PAGES = 64;
const PAGE_FRAME_BYTES = HEADER_BYTES + PAGES_HEAD_BYTES + RUN_BYTES + PAGE_BYTES;

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

/** A lane of a block where some pages are dirty, and the other end of its connection. */
async function makeLane(dirty: readonly number[]) {
  const { near, far } = await pairs.make();
  const memory = sharedMemory(PAGES * PAGE_BYTES);
  memory.write(Uint8Array.from({ length: memory.sizeBytes }, (_, at) => 1 + at / PAGE_BYTES));
  const announced = { name: "ram", sizeBytes: memory.sizeBytes, pageBytes: PAGE_BYTES };
  const block = sendBlockOf({ ...announced, source: memory });
  markPages(block, dirty);
  const setup = sendSetupOf([block], false);
  const words = createLaneWords();
  const place = placeOf(threadDescriptorOf(near));
  const lane = new LaneSender(setup, place, { words, served: createLatencies(), checksum: null });
  return { lane, words, setup, farFd: threadDescriptorOf(far) };
}

/** What a lane sends that is asked for these pages, one after the other, where some are dirty. */
async function answersTo(pages: readonly number[], dirty: readonly number[]) {
  const { lane, words, setup, farFd } = await makeLane(dirty);
  for (const [number, page] of pages.entries()) {
    const body = bodyOf(u32(0), u32(page), u32(number));
    const request = { kind: KIND.request, sequence: 1 + number, body, hasChecksum: false };
    writeSync(farFd, frameBytes(request));
  }
  tellLanes(words, OPEN);
  tellLanes(words, FINISH);
  lane.serve();
  lane.close();
  const bytes = Buffer.alloc(PAGES * PAGE_FRAME_BYTES);
  const sent = bytes.subarray(0, readSync(farFd, bytes));
  const counters = new CounterRow(setup.control, 0);
  return { sent, repeated: counters.read("repeated"), pages: counters.read("pages") };
}

/** The pages of frames with one raw page each, and END after them. */
function pagesIn(sent: Buffer): { page: number; content: number }[] {
  expect((sent.length - HEADER_BYTES) % PAGE_FRAME_BYTES).toBe(0);
  return Array.from({ length: (sent.length - HEADER_BYTES) / PAGE_FRAME_BYTES }, (_, index) => {
    const frame = sent.subarray(index * PAGE_FRAME_BYTES, (index + 1) * PAGE_FRAME_BYTES);
    const page = frame.readUInt32LE(HEADER_BYTES + PAGES_HEAD_BYTES);
    return { page, content: frame.at(-1) ?? 0 };
  });
}

test("a page that somebody else has taken is sent once more when it is asked for, and just once", async () => {
  const { sent, repeated, pages } = await answersTo([5, 5], []);
  expect(pagesIn(sent)).toEqual([{ page: 5, content: 6 }]);
  expect([repeated, pages]).toEqual([1, 0]);
});

test("a page that nobody has taken is sent, and not repeated", async () => {
  const { sent, repeated, pages } = await answersTo([5, 5, 40], [5]);
  expect(pagesIn(sent)).toEqual([
    { page: 5, content: 6 },
    { page: 40, content: 41 },
  ]);
  expect([repeated, pages]).toEqual([1, 1]);
});

test.each([
  ["one that is none of a lane's", KIND.discard, 20_000],
  ["one that is longer than any of a lane's", KIND.pages, 1_000_000],
])("of a frame, %s, no more than the head is read", async (_, kind, length) => {
  const { lane, words, farFd } = await makeLane([]);
  const head = Buffer.alloc(HEADER_BYTES);
  head.write("mfd1");
  head.writeUInt8(kind, 4);
  head.writeUInt32LE(1, 8);
  head.writeUInt32LE(length, 12);
  writeSync(farFd, head);
  tellLanes(words, OPEN);
  tellLanes(words, FINISH); // Else a lane that waits for the rest would do so for ever.
  expect(() => lane.serve()).toThrow(expect.objectContaining({ code: "FRAME_UNEXPECTED" }));
  lane.close();
});
