import { once } from "node:events";
import fs, { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { assert } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { FRAMES, HEADER_BYTES } from "../channels/frame.ts";
import { wirePageBytes } from "../engine/block.ts";
import { stopWorkers } from "../workers/control.ts";
import { popcount } from "../workers/dirty-words.ts";
import { PageSender } from "../workers/page-sender.ts";
import type { SendBlock } from "../workers/protocol.ts";
import { PIECE_BYTES } from "../workers/workbench.ts";
import { fileMemory, type GuardedMemory, sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs, shut, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import {
  CHUNK_BYTES,
  chunksOf,
  countersOf,
  markPages,
  Pipeline,
  type PipelineBlock,
  placeOf,
  sendBlockOf,
  sendSetupOf,
} from "./fixtures/wire-pipeline.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

let pairs: SocketPairs;
const folder = mkdtempSync(join(tmpdir(), "multifd-pages-"));
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => {
  pairs.close();
  rmSync(folder, { recursive: true });
});

type Kind = "shared" | "file";
let made = 0;

function makeMemory(kind: Kind, sizeBytes: number): GuardedMemory {
  made += 1;
  return kind === "shared" ? sharedMemory(sizeBytes) : fileMemory(folder, `${made}`, sizeBytes);
}

/** Pages of all kinds: zero, nearly zero at either end, repeated and random. */
function randomContent(random: Prng, sizeBytes: number, pageBytes: number): Uint8Array {
  const content = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes; at += pageBytes) {
    const page = content.subarray(at, at + pageBytes);
    // Runs of a kind are what guests have, and what frames are made of.
    const kind = random.below(4) === 0 ? random.below(6) : Math.floor(at / (8 * pageBytes)) % 3;
    if (kind === 1) page.fill(1 + random.below(255));
    if (kind === 2) random.bytes(page);
    if (kind === 3) page[0] = 0x80;
    if (kind === 4) page[pageBytes - 1] = 1;
  }
  return content;
}

function countZeroPages(content: Uint8Array, pageBytes: number): number {
  let zeros = 0;
  for (let at = 0; at < content.length; at += pageBytes) {
    if (content.subarray(at, at + pageBytes).every((byte) => byte === 0)) zeros += 1;
  }
  return zeros;
}

/** Several blocks, none of them whole chunks but where the page is larger than that. */
function makeBlocks(
  random: Prng,
  shape: { kind: Kind; pageBytes: number; isPristine: boolean },
): PipelineBlock[] {
  const { kind, pageBytes, isPristine } = shape;
  const counts = pageBytes >= 2 * MIB ? [1, 2] : [2 * (CHUNK_BYTES / pageBytes) + 5, 1, 67];
  return counts.map((pages, index) => {
    const sizeBytes = pages * pageBytes;
    const source = makeMemory(kind, sizeBytes);
    source.write(randomContent(random, sizeBytes, wirePageBytes(pageBytes)));
    const target = makeMemory(kind, sizeBytes);
    if (!isPristine) target.write(randomContent(random, sizeBytes, wirePageBytes(pageBytes)));
    return { name: `block ${index}`, sizeBytes, pageBytes, isPristine, source, target };
  });
}

function expectSame(blocks: readonly PipelineBlock[]): void {
  for (const { name, source, target } of blocks) {
    expect(Buffer.compare(source.read(), target.read()), name).toBe(0);
    expect(target.isGuarded, `${name}: bytes around it`).toBe(true);
  }
}

for (const kind of ["shared", "file"] as const) {
  for (const pageBytes of [4 * KIB, 16 * KIB, 64 * KIB, 2 * MIB]) {
    for (const isPristine of [true, false]) {
      for (const hasChecksum of [true, false]) {
        const path = [
          kind,
          `pages of ${pageBytes / KIB} KiB`,
          isPristine ? "fresh memory" : "used memory",
          hasChecksum ? "checksums" : "no checksums",
        ].join("/");

        test(`memory arrives exactly: ${path} (SEED=${seed})`, async () => {
          const blocks = makeBlocks(new Prng(seed), { kind, pageBytes, isPristine });
          const pipeline = await Pipeline.start(pairs, blocks, hasChecksum);
          const pages = pipeline.sendAll();
          pipeline.sender.fence(1);
          expectSame(blocks);

          const wirePage = wirePageBytes(pageBytes);
          const total = blocks.reduce((sum, { sizeBytes }) => sum + sizeBytes / wirePage, 0);
          const zeros = blocks.reduce((sum, { source }) => {
            return sum + countZeroPages(source.read(), wirePage);
          }, 0);
          expect(pages).toBe(total);
          for (const counters of [pipeline.sent, pipeline.received]) {
            expect(counters.read("pages")).toBe(total);
            expect(counters.read("zero")).toBe(zeros);
            expect(counters.read("raw")).toBe(total - zeros);
          }
          expect(pipeline.received.read("untouched")).toBe(isPristine ? zeros : 0);
          expect(await pipeline.end()).toEqual({ state: "done", pages: 0 });
          expect(pipeline.received.read("movedBytes")).toBe(pipeline.sent.read("movedBytes"));
          expectSame(blocks);
        });
      }
    }
  }
}

test(`rounds of changes arrive exactly, and only what is marked goes (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (const isPristine of [true, false]) {
    const blocks = makeBlocks(random, { kind: "shared", pageBytes: 4096, isPristine });
    const pipeline = await Pipeline.start(pairs, blocks, true);
    pipeline.sendAll();
    for (let round = 1; round <= 20; round += 1) {
      let marked = 0;
      for (const [index, { source, sizeBytes }] of blocks.entries()) {
        const pages = new Set<number>();
        const content = source.read();
        for (let change = random.below(30); change > 0; change -= 1) {
          const page = random.below(sizeBytes / 4096);
          const target = content.subarray(page * 4096, (page + 1) * 4096);
          if (random.below(2) === 0) target.fill(0);
          else random.bytes(target.subarray(random.below(4096)));
          pages.add(page);
        }
        source.write(content);
        pipeline.mark(index, pages);
        marked += pages.size;
      }
      expect(pipeline.send()).toBe(marked);
      pipeline.sender.fence(round);
      expectSame(blocks);
    }
    await pipeline.end();
  }
});

test("a page that was received and becomes zero is zero, in fresh memory too", async () => {
  for (const kind of ["shared", "file"] as const) {
    const sizeBytes = 16 * 4096;
    const [source, target] = [makeMemory(kind, sizeBytes), makeMemory(kind, sizeBytes)];
    const block = { name: "ram", sizeBytes, pageBytes: 4096, isPristine: true, source, target };
    const pipeline = await Pipeline.start(pairs, [block], false);
    for (const fills of [
      [0, 7],
      [7, 0],
      [0, 0],
      [9, 9],
      [0, 7],
    ] as const) {
      const content = new Uint8Array(sizeBytes);
      content.fill(fills[0], 0, sizeBytes / 2).fill(fills[1], sizeBytes / 2);
      source.write(content);
      pipeline.sendAll();
      pipeline.sender.fence(1);
      expectSame([block]);
    }
    await pipeline.end();
    // Only in the first round, the first half: after that everything had been written once.
    expect(pipeline.received.read("untouched")).toBe(8);
  }
});

test("zero pages stay holes in a file, whether or not it is known to be fresh", async () => {
  for (const isPristine of [true, false]) {
    const sizeBytes = 8 * MIB;
    const [source, target] = [makeMemory("file", sizeBytes), makeMemory("file", sizeBytes)];
    const block = { name: "ram", sizeBytes, pageBytes: 4096, isPristine, source, target };
    const content = new Uint8Array(sizeBytes);
    content.fill(1, 3 * MIB, 3 * MIB + 64 * KIB);
    content.fill(2, 5 * MIB, 5 * MIB + 4 * KIB);
    source.write(content);
    const pipeline = await Pipeline.start(pairs, [block], false);
    pipeline.sendAll();
    await pipeline.end();
    expectSame([block]);
    // The file system may allocate around what was written, not megabytes.
    expect(target.allocatedBytes).toBeGreaterThanOrEqual(68 * KIB);
    expect(target.allocatedBytes).toBeLessThan(256 * KIB);
  }
});

test("a file full of something else ends up exact", async () => {
  const sizeBytes = 3 * MIB + 4096;
  const [source, target] = [makeMemory("file", sizeBytes), makeMemory("file", sizeBytes)];
  const block = { name: "ram", sizeBytes, pageBytes: 4096, isPristine: false, source, target };
  source.write(randomContent(new Prng(1), sizeBytes, 4096));
  target.write(new Uint8Array(sizeBytes).fill(0xee));
  const pipeline = await Pipeline.start(pairs, [block], false);
  pipeline.sendAll();
  await pipeline.end();
  expectSame([block]);
  expect(pipeline.received.read("untouched")).toBe(0);
});

/** Sends into a file instead of a socket, so that the stream can be looked at. Counts writes. */
async function sendIntoFile(
  content: Uint8Array,
  options: { dirty: Iterable<number>; pageBytes?: number },
): Promise<{ frames: { kind: number; runs: number; bytes: number }[]; writes: number }> {
  const { pageBytes = 4096 } = options;
  const source = sharedMemory(content.length);
  source.write(content);
  const block = sendBlockOf({ name: "ram", sizeBytes: content.length, pageBytes, source });
  markPages(block, options.dirty);
  const path = join(folder, `stream-${made++}`);
  const fd = openSync(path, "w");
  const sender = new PageSender(sendSetupOf([block], false), placeOf(fd), null);
  const { writeSync } = fs;
  let writes = 0;
  fs.writeSync = ((...given: Parameters<typeof writeSync>) => {
    writes += 1;
    return writeSync(...given);
  }) as typeof writeSync;
  syncBuiltinESMExports();
  try {
    sender.send(0, chunksOf(block), 1);
  } finally {
    fs.writeSync = writeSync;
    syncBuiltinESMExports();
    closeSync(fd);
  }
  return { frames: framesOf(readFileSync(path)), writes };
}

function framesOf(stream: Buffer): { kind: number; runs: number; bytes: number }[] {
  const frames: { kind: number; runs: number; bytes: number }[] = [];
  for (let at = 0; at < stream.length; ) {
    const bytes = stream.readUInt32LE(at + 12);
    frames.push({
      kind: stream.readUInt8(at + 4),
      runs: stream.readUInt16LE(at + HEADER_BYTES + 4),
      bytes,
    });
    at += HEADER_BYTES + bytes;
  }
  return frames;
}

const PAGES_KIND = FRAMES.pages.kind;
const HEAD_BYTES = 8;
const RUN_BYTES = 12;

test("consecutive raw pages are one run, and a frame of them goes out in one write", async () => {
  const sizeBytes = 4 * PIECE_BYTES + 3 * 4096;
  const pages = sizeBytes / 4096;
  const content = new Uint8Array(sizeBytes).fill(5);
  const { frames, writes } = await sendIntoFile(content, { dirty: Array(pages).keys() });
  const whole = { kind: PAGES_KIND, runs: 1, bytes: HEAD_BYTES + RUN_BYTES + PIECE_BYTES };
  expect(frames).toEqual([
    ...Array(4).fill(whole),
    { ...whole, bytes: HEAD_BYTES + RUN_BYTES + 3 * 4096 },
  ]);
  expect(writes).toBe(frames.length);
});

test("pages that lie apart share a frame and its one write", async () => {
  const content = new Uint8Array(64 * 4096).fill(5);
  const dirty = [0, 1, 2, 10, 11, 40, 63];
  const { frames, writes } = await sendIntoFile(content, { dirty });
  const bytes = HEAD_BYTES + 4 * RUN_BYTES + dirty.length * 4096;
  expect(frames).toEqual([{ kind: PAGES_KIND, runs: 4, bytes }]);
  expect(writes).toBe(1);
});

test("zero pages cost a run and no payload, wherever they lie between others", async () => {
  const content = new Uint8Array(64 * 4096);
  content.fill(5, 0, 4096).fill(5, 20 * 4096, 22 * 4096);
  const { frames, writes } = await sendIntoFile(content, { dirty: Array(64).keys() });
  const bytes = HEAD_BYTES + 4 * RUN_BYTES + 3 * 4096;
  expect(frames).toEqual([{ kind: PAGES_KIND, runs: 4, bytes }]);
  expect(writes).toBe(1);
});

test("the most runs that pages can make fit one frame", async () => {
  const content = new Uint8Array(PIECE_BYTES);
  for (let at = 0; at < content.length; at += 2 * 4096) content.fill(5, at, at + 4096);
  const { frames } = await sendIntoFile(content, { dirty: Array(PIECE_BYTES / 4096).keys() });
  const runs = PIECE_BYTES / 4096;
  const bytes = HEAD_BYTES + runs * RUN_BYTES + PIECE_BYTES / 2;
  expect(frames).toEqual([{ kind: PAGES_KIND, runs, bytes }]);
});

test("nothing dirty sends nothing", async () => {
  const { frames, writes } = await sendIntoFile(new Uint8Array(64 * 4096), { dirty: [] });
  expect([frames, writes]).toEqual([[], 0]);
});

function dirtyPagesOf(block: SendBlock): number {
  return block.dirty.words.reduce((sum, word) => sum + popcount(word), 0);
}

async function makeLoneSender(): Promise<{
  block: SendBlock;
  sender: PageSender;
  setup: ReturnType<typeof sendSetupOf>;
  far: Parameters<typeof shut>[0];
}> {
  const sizeBytes = 16 * MIB;
  const source = sharedMemory(sizeBytes);
  source.write(new Uint8Array(sizeBytes).fill(3));
  const block = sendBlockOf({ name: "ram", sizeBytes, pageBytes: 4096, source });
  markPages(block, Array(block.pageCount).keys());
  const { near, far } = await pairs.make();
  const setup = sendSetupOf([block], false);
  const sender = new PageSender(setup, placeOf(threadDescriptorOf(near)), null);
  onTestFinished(() => sender.close());
  return { block, sender, setup, far };
}

test("a channel that is lost puts back the mark of every page that it took", async () => {
  const { block, sender, far } = await makeLoneSender();
  await shut(far);
  const lost = expect.objectContaining({ code: "CHANNEL_LOST" });
  expect(() => sender.send(0, chunksOf(block), 1)).toThrow(lost);
  expect(dirtyPagesOf(block)).toBe(block.pageCount);
});

test("a stop while the peer does not read puts back every mark, too", async () => {
  const { block, sender, setup } = await makeLoneSender();
  stopWorkers(setup.control);
  expect(() => sender.send(0, chunksOf(block), 1)).toThrow(
    expect.objectContaining({ name: "Stopped" }),
  );
  expect(dirtyPagesOf(block)).toBe(block.pageCount);
  expect(countersOf(setup.control).read("pages")).toBe(0);
});

test("what arrives has a right checksum although the guest writes while it is read", async () => {
  const sizeBytes = 2 * MIB;
  const [source, target] = [sharedMemory(sizeBytes), sharedMemory(sizeBytes)];
  const block = { name: "ram", sizeBytes, pageBytes: 4096, isPristine: true, source, target };
  const pipeline = await Pipeline.start(pairs, [block], true);
  assert(source.place.kind === "shared", "threads can reach the guest");
  const words = new Int32Array(new SharedArrayBuffer(8));
  const guest = new Uint8Array(source.place.buffer, 0, sizeBytes);
  const url = new URL("./fixtures/wire-scribbler.ts", import.meta.url);
  const thread = new Worker(url, { workerData: { target: guest, words } });
  const ended = once(thread, "exit");
  Atomics.wait(words, 0, 0);
  for (let round = 0; round < 5; round += 1) pipeline.sendAll();
  Atomics.store(words, 1, 1);
  expect(await ended).toEqual([0]);
  pipeline.sendAll();
  expect(await pipeline.end()).toEqual({ state: "done", pages: 0 });
  expectSame([block]);
});
