import { once } from "node:events";
import fs, { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { writeAll } from "../channels/descriptor.ts";
import { HEADER_BYTES, PAGES_HEAD_BYTES, RUN_BYTES } from "../channels/frame.ts";
import { geometryOf } from "../engine/block.ts";
import { CounterRow } from "../workers/control.ts";
import { FRAME_BYTES } from "../workers/frame-length.ts";
import { beginPostcopy } from "../workers/gate.ts";
import { PageReceiver } from "../workers/page-receiver.ts";
import { PageSender } from "../workers/page-sender.ts";
import type { DrainTask } from "./fixtures/wire-drain.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import * as pipeline from "./fixtures/wire-pipeline.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const PAGE_BYTES = 4096;
/** Longer than a frame, so that a run of pages can be cut where one is full. */
const CHUNK_BYTES = 2 * MIB;

const seed = seedFromEnvironment();

let folder: string;
let pairs: SocketPairs;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "multifd-straight-"));
  pairs = await SocketPairs.open();
});
afterAll(() => {
  rmSync(folder, { recursive: true });
  pairs.close();
});

/** Sends `dirty` pages of `content` into a file, and receives them from there. */
async function transfer(
  content: Uint8Array,
  {
    dirty,
    hasChecksum = false,
    codec = 0,
    isPostcopy = false,
  }: { dirty: Iterable<number>; hasChecksum?: boolean; codec?: number; isPostcopy?: boolean },
) {
  const memory = { source: sharedMemory(content.length), target: sharedMemory(content.length) };
  memory.source.write(content);
  memory.target.write(new Uint8Array(content.length).fill(0xee));
  const announced = { name: "ram", sizeBytes: content.length, pageBytes: PAGE_BYTES };
  const block = {
    ...pipeline.sendBlockOf({ ...announced, source: memory.source }),
    ...geometryOf(announced, CHUNK_BYTES),
  };
  pipeline.markPages(block, dirty);

  const path = join(folder, "stream");
  const checksum = await loadChecksum();
  const writing = openSync(path, "w");
  const settings = { codec, level: 1, isAuto: false, cpuShare: 0, extraTime: 0 };
  const setup = pipeline.sendSetupOf([block], hasChecksum, { codec: settings });
  if (isPostcopy) beginPostcopy(setup.control);
  const place = pipeline.placeOf(writing);
  const sender = new PageSender(setup, place, hasChecksum ? checksum : null);
  const gathered = countGathered(() => sender.send(0, pipeline.chunksOf(block), 1));
  sender.end();
  closeSync(writing);

  const streamBytes = fs.statSync(path).size;
  const reading = openSync(path, "r");
  const target = { ...announced, target: memory.target, isPristine: false };
  const receive = pipeline.receiveSetupOf([pipeline.receiveBlockOf(target)], hasChecksum);
  new PageReceiver(receive, pipeline.placeOf(reading), checksum).receive();
  closeSync(reading);
  expect(memory.target.isGuarded).toBe(true);
  return { ...gathered, streamBytes, arrived: memory.target.read() };
}

/** Runs `send` and counts the calls that write two ranges of memory as one. */
function countGathered(send: () => number): { pages: number; gathered: number } {
  const { writevSync } = fs;
  let gathered = 0;
  fs.writevSync = ((...given: Parameters<typeof writevSync>) => {
    gathered += 1;
    return writevSync(...given);
  }) as typeof writevSync;
  syncBuiltinESMExports();
  try {
    return { pages: send(), gathered };
  } finally {
    fs.writevSync = writevSync;
    syncBuiltinESMExports();
  }
}

test("pages that are not zero go from where they lie, a call for as many as a frame may bring", async () => {
  const content = new Uint8Array(CHUNK_BYTES).fill(5);
  const dirty = Array(CHUNK_BYTES / PAGE_BYTES).keys();
  const { gathered, arrived } = await transfer(content, { dirty });
  expect(gathered).toBe(CHUNK_BYTES / FRAME_BYTES.precopy.straight);
  expect(Buffer.compare(arrived, content)).toBe(0);
});

test("in post-copy frames are short: what comes in between waits for the rest of one", async () => {
  const content = new Uint8Array(CHUNK_BYTES).fill(5);
  const dirty = Array(CHUNK_BYTES / PAGE_BYTES).keys();
  const { gathered, arrived } = await transfer(content, { dirty, isPostcopy: true });
  expect(gathered).toBe(CHUNK_BYTES / FRAME_BYTES.awaited.straight);
  expect(Buffer.compare(arrived, content)).toBe(0);
});

test("a stretch of zeros is one frame, but in post-copy none waits for the next chunk", async () => {
  const chunks = 3;
  const content = new Uint8Array(chunks * CHUNK_BYTES);
  const frameBytes = HEADER_BYTES + PAGES_HEAD_BYTES + RUN_BYTES;
  for (const [isPostcopy, frames] of [
    [false, 1],
    [true, chunks],
  ] as const) {
    const dirty = Array(content.length / PAGE_BYTES).keys();
    const { streamBytes, arrived } = await transfer(content, { dirty, isPostcopy });
    expect(streamBytes).toBe(frames * frameBytes + HEADER_BYTES);
    expect(Buffer.compare(arrived, content)).toBe(0);
  }
});

test("where frames have checksums no page goes uncopied", async () => {
  const content = new Uint8Array(CHUNK_BYTES).fill(5);
  const dirty = Array(CHUNK_BYTES / PAGE_BYTES).keys();
  const { gathered, arrived } = await transfer(content, { dirty, hasChecksum: true });
  expect(gathered).toBe(0);
  expect(Buffer.compare(arrived, content)).toBe(0);
});

/** Pages by how they begin: what is seen at once, what only a look at all of the page tells. */
const KINDS: readonly ((page: Uint8Array, random: Prng) => void)[] = [
  (page, random) => {
    random.bytes(page);
    page[0] = 1;
  },
  (page) => page.fill(0),
  (page) => page.fill(0).fill(7, 8, 9),
  (page) => page.fill(0).fill(7, PAGE_BYTES - 1),
];

const LONG: ReadonlySet<unknown> = new Set(KINDS.slice(0, 2));

test(`a byte among zeros arrives wherever it is (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const dirty = [...Array(CHUNK_BYTES / PAGE_BYTES).keys()];
  for (let round = 0; round < 50; round += 1) {
    const content = new Uint8Array(CHUNK_BYTES);
    content[random.below(content.length)] = 1 + random.below(255);
    const { arrived } = await transfer(content, { dirty, hasChecksum: round % 2 === 0 });
    expect(Buffer.compare(arrived, content), `round ${round}`).toBe(0);
  }
});

test(`pages arrive exactly however those that go straight lie among others (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (let round = 0; round < 12; round += 1) {
    const pages = 1 + random.below(1500);
    const content = new Uint8Array(pages * PAGE_BYTES);
    const dirty: number[] = [];
    for (let page = 0; page < pages; ) {
      // Long runs of what is not zero, and of zeros: those go straight.
      const kind = KINDS[Math.max(0, random.below(8) - 4)] ?? KINDS[0];
      const isDirty = random.below(8) > 0;
      const end = Math.min(pages, page + 1 + random.below(LONG.has(kind) ? 400 : 3));
      for (; page < end; page += 1) {
        kind?.(content.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES), random);
        if (isDirty) dirty.push(page);
      }
    }
    const { pages: sent, arrived } = await transfer(content, { dirty });
    expect(sent).toBe(dirty.length);
    const wanted = new Uint8Array(content.length).fill(0xee);
    for (const page of dirty) {
      const from = page * PAGE_BYTES;
      wanted.set(content.subarray(from, from + PAGE_BYTES), from);
    }
    expect(Buffer.compare(arrived, wanted)).toBe(0);
  }
});

const CODECS_SET = { none: 0, zstd: 1 } as const;

for (const codec of ["none", "zstd"] as const) {
  for (const [size, cachePart] of [
    ["an eighth", 1 / 8],
    ["half", 1 / 2],
    ["all", 1],
  ] as const) {
    test(`versions stay right beside pages that go straight: ${codec}, a cache for ${size} of memory (SEED=${seed})`, async () => {
      const random = new Prng(seed);
      const pages = 4 * (CHUNK_BYTES / PAGE_BYTES);
      const bytes = pages * PAGE_BYTES;
      const [source, target] = [sharedMemory(bytes), sharedMemory(bytes)];
      const content = new Uint8Array(bytes);
      random.bytes(content);
      for (let at = 0; at < bytes; at += PAGE_BYTES) content[at] = 1;
      source.write(content);
      const announced = { name: "ram", sizeBytes: bytes, pageBytes: PAGE_BYTES };
      const geometry = geometryOf(announced, CHUNK_BYTES);
      const block = { ...pipeline.sendBlockOf({ ...announced, source }), ...geometry };
      const path = join(folder, "rounds");
      const writing = openSync(path, "w");
      const settings = {
        codec: CODECS_SET[codec],
        level: 1,
        isAuto: false,
        cpuShare: 0,
        extraTime: 0,
      };
      const shrinking = { cacheBytes: bytes * cachePart, codec: settings };
      const setup = pipeline.sendSetupOf([block], false, shrinking);
      const sender = new PageSender(setup, pipeline.placeOf(writing), null);
      const gathered: number[] = [];
      for (let round = 1; round <= 6; round += 1) {
        const dirty = new Set<number>(round === 1 ? Array(pages).keys() : []);
        for (let runs = 0; round > 1 && runs < 6; runs += 1) {
          // The first stretch is hot: whatever comes after it, a cache gets to know some of it.
          const first = runs === 0 ? 0 : random.below(pages);
          for (let page = first; page < Math.min(pages, first + 200); page += 1) {
            content[page * PAGE_BYTES + 100 + random.below(3000)] = random.below(256);
            dirty.add(page);
          }
        }
        source.write(content);
        pipeline.markPages(block, dirty);
        const sent = countGathered(() => sender.send(0, pipeline.chunksOf(block), round));
        expect(sent.pages).toBe(dirty.size);
        gathered.push(sent.gathered);
      }
      sender.end();
      closeSync(writing);
      const counters = new CounterRow(setup.control, 0);
      const known = counters.read("deltaHits") + counters.read("deltaMisses");
      expect(known).toBe(counters.read("pages"));
      expect(counters.read("delta")).toBeGreaterThan(0);
      // What a cache has no room for goes straight; one for everything looks at every page.
      if (cachePart === 1) expect(Math.max(...gathered)).toBe(0);
      else expect(gathered[0]).toBeGreaterThan(0);

      const reading = openSync(path, "r");
      const arriving = pipeline.receiveBlockOf({ ...announced, target, isPristine: false });
      const receive = pipeline.receiveSetupOf([arriving], false);
      new PageReceiver(receive, pipeline.placeOf(reading), await loadChecksum()).receive();
      closeSync(reading);
      expect(Buffer.compare(target.read(), content)).toBe(0);
    });
  }
}

test(`memory that does not shrink goes straight but for a sample, with a codec, too (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const content = new Uint8Array(32 * CHUNK_BYTES);
  random.bytes(content);
  for (let at = 0; at < content.length; at += PAGE_BYTES) content[at] = 1;
  const dirty = Array(content.length / PAGE_BYTES).keys();
  const { gathered, arrived } = await transfer(content, { dirty, codec: CODECS_SET.zstd });
  const frames = (32 * CHUNK_BYTES) / FRAME_BYTES.precopy.straight;
  expect(gathered).toBeGreaterThan(0.8 * frames);
  expect(gathered).toBeLessThan(frames);
  expect(Buffer.compare(arrived, content)).toBe(0);
});

test("memory that shrinks is compressed, and does not go straight", async () => {
  const content = new Uint8Array(4 * CHUNK_BYTES).fill(5);
  const dirty = Array(content.length / PAGE_BYTES).keys();
  const { gathered, arrived } = await transfer(content, { dirty, codec: CODECS_SET.zstd });
  expect(gathered).toBe(0);
  expect(Buffer.compare(arrived, content)).toBe(0);
});

test(`two ranges go through as one while the peer reads slowly, wherever they are cut (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const whole = new Uint8Array(MIB);
  random.bytes(whole);
  for (const cut of [0, 1, 44, 1 + random.below(whole.length - 1), whole.length]) {
    const { near, far } = await pairs.make();
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const target = new Uint8Array(new SharedArrayBuffer(whole.length));
    const workerData: DrainTask = {
      fd: threadDescriptorOf(far),
      stop,
      target,
      pieceBytes: 30_011,
    };
    const thread = new Worker(new URL("./fixtures/wire-drain.ts", import.meta.url), { workerData });
    const ended = once(thread, "exit");
    const options = { fd: threadDescriptorOf(near), channel: 2, stop, limitMs: 10_000 };
    writeAll(options, whole.subarray(0, cut), whole.subarray(cut));
    expect(await ended).toEqual([0]);
    expect(Buffer.compare(target, whole)).toBe(0);
  }
});
