import { afterAll, beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { codecNamed } from "../workers/codecs/list.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import {
  CHUNK_BYTES,
  chunksOf,
  Pipeline,
  type PipelineBlock,
  type Shrinking,
} from "./fixtures/wire-pipeline.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/**
 * Chunks that go now by one channel and now by another, as when one is lost or has less to do. What a
 * channel's cache has of such a chunk is then not what the destination has.
 */
const seed = seedFromEnvironment();

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

/** Larger than every guest here. */
const WHOLE = 16 * MIB;

const { number: zstd } = must(codecNamed("zstd"), "zstd is a codec");
const AUTO = { codec: zstd, level: 1, isAuto: true, cpuShare: 0, extraTime: 0 };

const WAYS: Readonly<Record<string, Shrinking>> = {
  xbzrle: { cacheBytes: WHOLE },
  auto: { cacheBytes: WHOLE, codec: AUTO },
};

const CHUNKS = 4;

/** Two blocks of that many chunks. */
function makeGuest(): PipelineBlock[] {
  return [4 * KIB, 16 * KIB].map((pageBytes) => {
    const sizeBytes = CHUNKS * chunkBytesOf(pageBytes);
    const [source, target] = [sharedMemory(sizeBytes), sharedMemory(sizeBytes)];
    source.write(Uint8Array.from({ length: sizeBytes }, (_, at) => 97 + ((at * 7) % 17)));
    return { name: `${pageBytes}`, sizeBytes, pageBytes, isPristine: true, source, target };
  });
}

/** A chunk has at least the pages of one word. */
function chunkBytesOf(pageBytes: number): number {
  return Math.max(CHUNK_BYTES, 32 * pageBytes);
}

/** What is in some bytes of each page, by chunk. */
type Version = (chunk: number) => number;

function write(blocks: readonly PipelineBlock[], version: Version): void {
  for (const { source, sizeBytes, pageBytes } of blocks) {
    const content = source.read();
    for (let at = 0; at < sizeBytes; at += pageBytes) {
      const byte = version(Math.floor(at / chunkBytesOf(pageBytes)));
      content.fill(byte, at + 1000, at + 1009);
    }
    source.write(content);
  }
}

function isOdd(chunk: number): boolean {
  return chunk % 2 === 1;
}

function isEven(chunk: number): boolean {
  return !isOdd(chunk);
}

const ALL = (): boolean => true;

/** All pages of these chunks are dirty, and go by that channel until they have arrived. */
function sendBy(
  pipeline: Pipeline,
  blocks: readonly PipelineBlock[],
  isSent: (chunk: number) => boolean,
): void {
  for (const [index, { sizeBytes, pageBytes }] of blocks.entries()) {
    pipeline.mark(index, Array(sizeBytes / pageBytes).keys());
  }
  pipeline.send((block) => chunksOf(block).filter(isSent));
  pipeline.sender.fence(1);
}

function expectSame(blocks: readonly PipelineBlock[]): void {
  for (const { name, source, target } of blocks) {
    expect(Buffer.compare(source.read(), target.read()), `pages of ${name} bytes`).toBe(0);
  }
}

/** Of the even chunks, and of the odd ones. */
function halfOf(blocks: readonly PipelineBlock[]): number {
  return blocks.reduce((sum, { sizeBytes, pageBytes }) => sum + sizeBytes / pageBytes / 2, 0);
}

async function startTwo(blocks: readonly PipelineBlock[], shrinking: Shrinking) {
  const [one, two] = await Pipeline.startAll([1, 2], pairs, blocks, false, shrinking);
  return { one: must(one, "the first channel"), two: must(two, "the second channel") };
}

/** One has sent everything, and the other then a new version of the odd chunks. */
async function handOver(blocks: readonly PipelineBlock[], shrinking: Shrinking) {
  const channels = await startTwo(blocks, shrinking);
  write(blocks, () => 1);
  sendBy(channels.one, blocks, ALL);
  write(blocks, (chunk) => (isOdd(chunk) ? 2 : 1));
  sendBy(channels.two, blocks, isOdd);
  expectSame(blocks);
  return channels;
}

for (const [name, shrinking] of Object.entries(WAYS)) {
  test(`what is again as a channel sent it, before another one did, is sent again: ${name}`, async () => {
    const blocks = makeGuest();
    const { one, two } = await handOver(blocks, shrinking);
    write(blocks, () => 1);
    sendBy(one, blocks, ALL);
    expectSame(blocks);
    // The even chunks were this channel's all the time: it says nothing of them.
    expect(one.sent.read("unchanged")).toBe(halfOf(blocks));
    expect(one.sent.read("delta") + two.sent.read("delta")).toBe(0);
    for (const pipeline of [one, two]) expect((await pipeline.end()).state).toBe("done");
  });

  test(`no delta is based on what a channel sent before another one did: ${name}`, async () => {
    const blocks = makeGuest();
    const { one, two } = await handOver(blocks, shrinking);
    write(blocks, () => 3);
    sendBy(one, blocks, ALL);
    expectSame(blocks);
    expect(one.sent.read("delta"), "of the even chunks").toBe(halfOf(blocks));
    write(blocks, (chunk) => (isOdd(chunk) ? 4 : 3));
    sendBy(two, blocks, isOdd);
    expectSame(blocks);
    expect(two.sent.read("delta")).toBe(0);
    write(blocks, () => 5);
    sendBy(two, blocks, isOdd);
    sendBy(one, blocks, isEven);
    expectSame(blocks);
    // Each has sent the version before of its own chunks.
    expect(one.sent.read("delta")).toBe(2 * halfOf(blocks));
    expect(two.sent.read("delta")).toBe(halfOf(blocks));
    for (const pipeline of [one, two]) expect((await pipeline.end()).state).toBe("done");
  });
}

/** Few, so that a chunk is often again as it was. */
const VERSIONS = 3;

test(`chunks arrive as they are, whichever channel they go by (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (const shrinking of Object.values(WAYS)) {
    const blocks = makeGuest();
    const { one, two } = await startTwo(blocks, shrinking);
    for (let round = 1; round <= 10; round += 1) {
      const versions = Array.from({ length: CHUNKS }, () => random.below(VERSIONS));
      write(blocks, (chunk) => versions[chunk] ?? 0);
      const channels = Array.from({ length: CHUNKS }, () => 1 + random.below(2));
      sendBy(one, blocks, (chunk) => channels[chunk] === 1);
      sendBy(two, blocks, (chunk) => channels[chunk] === 2);
      expectSame(blocks);
    }
    for (const pipeline of [one, two]) expect((await pipeline.end()).state).toBe("done");
  }
});
