import { once } from "node:events";
import fs, { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { assert, must } from "../base/assert.ts";
import { useClock } from "../base/clock.ts";
import { KIB, MIB } from "../base/units.ts";
import { HEADER_BYTES, PAGES_HEAD_BYTES, RUN_BYTES } from "../channels/frame.ts";
import { CODECS, codecNamed } from "../workers/codecs/list.ts";
import type { CodecSettings } from "../workers/control.ts";
import { DeltaCache, shardBytes } from "../workers/delta-cache.ts";
import { FrameWriter } from "../workers/frame-writer.ts";
import { PageSender } from "../workers/page-sender.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import {
  chunksOf,
  markPages,
  Pipeline,
  type PipelineBlock,
  placeOf,
  type Shrinking,
  sendBlocksOf,
  sendSetupOf,
} from "./fixtures/wire-pipeline.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { ENCODING, KIND } from "./wire-peer.ts";

const seed = seedFromEnvironment();

let pairs: SocketPairs;
const folder = mkdtempSync(join(tmpdir(), "multifd-delta-"));
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => {
  pairs.close();
  rmSync(folder, { recursive: true });
});

function codec(name: string, changes: Partial<CodecSettings> = {}): CodecSettings {
  const { number } = must(codecNamed(name), "a test names codecs that exist");
  return { codec: number, level: 1, isAuto: false, cpuShare: 0, extraTime: 0, ...changes };
}

/** Larger than every guest here. */
const WHOLE = 16 * MIB;

const WAYS: Readonly<Record<string, Shrinking>> = {
  xbzrle: { cacheBytes: WHOLE },
  "xbzrle with a small cache": { cacheBytes: 80 * KIB },
  zstd: { codec: codec("zstd") },
  deflate: { codec: codec("deflate") },
  "xbzrle and zstd": { cacheBytes: WHOLE, codec: codec("zstd", { level: 3 }) },
  "xbzrle and deflate": { cacheBytes: WHOLE, codec: codec("deflate") },
  auto: { cacheBytes: WHOLE, codec: codec("zstd", { isAuto: true }) },
};

/** What a guest does to a page of its own. Some leave it as it was. */
const CHANGES: readonly ((page: Uint8Array, random: Prng) => void)[] = [
  (page, random) => random.bytes(page.subarray(random.below(page.length)).subarray(0, 8)),
  (page, random) => {
    for (let count = 0; count < page.length / 4; count += 1) {
      page[random.below(page.length)] = random.below(256);
    }
  },
  (page, random) => random.bytes(page),
  (page) => page.fill(0),
  (page, random) => page.fill(1 + random.below(255)),
  () => {},
  (page, random) => {
    page[random.below(page.length)] = 0x80;
  },
  (page, random) => page.copyWithin(1, 0, 64 + random.below(page.length - 64)),
];

/** A guest with several blocks; with several page sizes unless all are to be of one. */
function makeGuest(random: Prng, pageBytes: number | null): PipelineBlock[] {
  const shape = [
    { pages: pageBytes === 64 * KIB ? 39 : 133, bytes: pageBytes ?? 4 * KIB },
    { pages: 37, bytes: pageBytes ?? 16 * KIB },
    { pages: pageBytes === null ? 34 : 8, bytes: pageBytes ?? 64 * KIB },
    { pages: 3, bytes: pageBytes ?? 4 * KIB },
  ];
  return shape.map(({ pages, bytes }, index) => {
    const sizeBytes = pages * bytes;
    const [source, target] = [sharedMemory(sizeBytes), sharedMemory(sizeBytes)];
    const content = new Uint8Array(sizeBytes);
    for (let at = 0; at < sizeBytes; at += bytes) {
      const page = content.subarray(at, at + bytes);
      const kind = random.below(3);
      if (kind === 1) random.bytes(page);
      if (kind === 2) for (let i = 0; i < page.length; i += 1) page[i] = 97 + ((i * 7) % 11);
    }
    source.write(content);
    const isPristine = random.below(2) === 0;
    if (!isPristine) target.write(new Uint8Array(sizeBytes).fill(0x77));
    return { name: `block ${index}`, sizeBytes, pageBytes: bytes, isPristine, source, target };
  });
}

/** The guest writes some of its pages; returns them by block. */
function change(random: Prng, blocks: readonly PipelineBlock[]): number[][] {
  return blocks.map(({ source, sizeBytes, pageBytes }) => {
    const content = source.read();
    const pages = new Set<number>();
    for (let count = random.below(40); count > 0; count -= 1) {
      const page = random.below(sizeBytes / pageBytes);
      const how = must(CHANGES[random.below(CHANGES.length)], "there are changes");
      how(content.subarray(page * pageBytes, (page + 1) * pageBytes), random);
      pages.add(page);
    }
    source.write(content);
    return [...pages];
  });
}

function expectSame(blocks: readonly PipelineBlock[]): void {
  for (const { name, source, target } of blocks) {
    expect(Buffer.compare(source.read(), target.read()), name).toBe(0);
    expect(target.isGuarded, `${name}: bytes around it`).toBe(true);
  }
}

/** Both ends have counted the same, and nothing twice. */
function expectCounters({ sent, received }: Pipeline, pages: number): void {
  const of = (name: Parameters<typeof sent.read>[0]) => sent.read(name);
  expect(of("pages")).toBe(pages);
  const described = of("zero") + of("delta") + of("compressed") + of("raw");
  expect(described + of("unchanged")).toBe(pages);
  for (const name of ["zero", "delta", "compressed", "raw"] as const) {
    expect(received.read(name), name).toBe(of(name));
  }
  expect(received.read("pages")).toBe(described);
  expect(received.read("unchanged")).toBe(0);
  expect(of("codecBeforeBytes")).toBeLessThanOrEqual(of("codecTriedBytes"));
  expect(of("codecAfterBytes")).toBeLessThanOrEqual(of("codecBeforeBytes") * 0.95);
  expect(of("deltaAfterBytes")).toBeLessThanOrEqual(of("deltaBeforeBytes"));
}

for (const [name, shrinking] of Object.entries(WAYS)) {
  for (const pageBytes of [4 * KIB, 16 * KIB, 64 * KIB, null]) {
    const size = pageBytes === null ? "pages of all sizes" : `pages of ${pageBytes / KIB} KiB`;
    const hasChecksum = pageBytes === 16 * KIB;

    test(`every round of changes arrives exactly: ${name}, ${size} (SEED=${seed})`, async () => {
      const random = new Prng(seed);
      const blocks = makeGuest(random, pageBytes);
      const pipeline = await Pipeline.start(pairs, blocks, hasChecksum, shrinking);
      let pages = pipeline.sendAll();
      for (let round = 2; round <= 8; round += 1) {
        pipeline.sender.fence(round);
        expectSame(blocks);
        expectCounters(pipeline, pages);
        for (const [index, changed] of change(random, blocks).entries()) {
          pipeline.mark(index, changed);
        }
        pages += pipeline.send();
      }
      expect(await pipeline.end()).toEqual({ state: "done", pages: 0 });
      expectSame(blocks);
      expectCounters(pipeline, pages);
      expect(pipeline.received.read("movedBytes")).toBe(pipeline.sent.read("movedBytes"));

      const { sent } = pipeline;
      const lookups = sent.read("deltaHits") + sent.read("deltaMisses");
      if (shrinking.cacheBytes === WHOLE) expect(lookups).toBe(pages);
      if (shrinking.cacheBytes === WHOLE) expect(sent.read("delta")).toBeGreaterThan(0);
      if (shrinking.cacheBytes === undefined) expect(lookups + sent.read("delta")).toBe(0);
      if (shrinking.codec !== undefined) expect(sent.read("compressed")).toBeGreaterThan(0);
      else expect(sent.read("compressed")).toBe(0);
    });
  }
}

/** One block of 4 KiB pages, filled with text. */
function makeBlock(sizeBytes = 2 * MIB): PipelineBlock {
  const [source, target] = [sharedMemory(sizeBytes), sharedMemory(sizeBytes)];
  source.write(Uint8Array.from({ length: sizeBytes }, (_, at) => 97 + ((at * 7 + (at >> 8)) % 17)));
  return { name: "ram", sizeBytes, pageBytes: 4096, isPristine: true, source, target };
}

test("dirty pages that did not change send nothing, not even a frame", async () => {
  const block = makeBlock();
  const pipeline = await Pipeline.start(pairs, [block], true, { cacheBytes: WHOLE });
  const pages = pipeline.sendAll();
  const movedBytes = pipeline.sent.read("movedBytes");
  expect(pipeline.sendAll()).toBe(pages);
  expect(pipeline.sent.read("movedBytes")).toBe(movedBytes);
  expect(pipeline.sent.read("unchanged")).toBe(pages);
  await pipeline.end();
  expectSame([block]);
});

test("some changed bytes per page cost little more than these bytes", async () => {
  const block = makeBlock();
  const pipeline = await Pipeline.start(pairs, [block], false, { cacheBytes: WHOLE });
  const pages = pipeline.sendAll();
  const movedBytes = pipeline.sent.read("movedBytes");
  const content = block.source.read();
  for (let at = 0; at < content.length; at += 4096) content.set([1, 2, 3, 4], at + 1000);
  block.source.write(content);
  pipeline.sendAll();
  await pipeline.end();
  expectSame([block]);
  expect(pipeline.sent.read("delta")).toBe(pages);
  expect(pipeline.sent.read("deltaBeforeBytes")).toBe(block.sizeBytes);
  // Two numbers, the longer one of two bytes, and the bytes themselves.
  expect(pipeline.sent.read("deltaAfterBytes")).toBe(pages * (2 + 1 + 4));
  const perPage = (pipeline.sent.read("movedBytes") - movedBytes) / pages;
  expect(perPage).toBeLessThan(7 + 4 + 2 + 1);
});

test("pages in which everything changed overflow and go as they are", async () => {
  const block = makeBlock();
  const pipeline = await Pipeline.start(pairs, [block], false, { cacheBytes: WHOLE });
  const pages = pipeline.sendAll();
  block.source.write(block.source.read().map((byte) => byte ^ 0xff));
  pipeline.sendAll();
  await pipeline.end();
  expectSame([block]);
  expect(pipeline.sent.read("deltaOverflows")).toBe(pages);
  expect(pipeline.sent.read("delta")).toBe(0);
  expect(pipeline.sent.read("deltaAfterBytes")).toBe(0);
});

/** A page of which nothing stays, and that no codec makes smaller. */
function rewrite(random: Prng, content: Uint8Array, page: number): void {
  random.bytes(content.subarray(page * 4096, (page + 1) * 4096));
}

/** With `auto`, deltas are worth whatever they take: what is chosen does not depend on this machine. */
const PATIENT = { isAuto: true, extraTime: 1000 };

test(`auto leaves chunks alone in which all changes, and has deltas of the others (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const block = makeBlock();
  const shrinking = { cacheBytes: WHOLE, codec: codec("zstd", PATIENT) };
  const pipeline = await Pipeline.start(pairs, [block], false, shrinking);
  const pages = pipeline.sendAll();
  const half = pages / 2;
  const rounds = 20;
  for (let round = 2; round <= rounds; round += 1) {
    const content = block.source.read();
    for (let page = 0; page < half; page += 1) rewrite(random, content, page);
    for (let page = half; page < pages; page += 1)
      random.bytes(content.subarray(page * 4096).subarray(0, 4));
    block.source.write(content);
    pipeline.sendAll();
    pipeline.sender.fence(round);
    expectSame([block]);
  }
  await pipeline.end();
  expect(pipeline.sent.read("delta")).toBe((rounds - 1) * half);
  // Tried in the 2nd round and left alone in the 3rd; remembered anew in the 4th, tried in the 5th and
  // left alone for two; then for four, and from the 15th on for eight.
  expect(pipeline.sent.read("deltaOverflows")).toBe(4 * half);
});

test(`what is sent of a chunk that is left alone is never what a delta is based on (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  // Changes come from some pages of all chunks: pieces reach over chunks of either kind.
  const block = makeBlock();
  const shrinking = { cacheBytes: WHOLE, codec: codec("zstd", PATIENT) };
  const pipeline = await Pipeline.start(pairs, [block], true, shrinking);
  const pages = pipeline.sendAll();
  for (let round = 2; round <= 60; round += 1) {
    const content = block.source.read();
    const changed = new Set<number>();
    for (let chunk = 0; chunk < 8; chunk += 1) {
      const isWhole = random.below(3) > 0;
      for (let count = random.below(30); count > 0; count -= 1) {
        const page = chunk * (pages / 8) + random.below(pages / 8);
        changed.add(page);
        if (isWhole) rewrite(random, content, page);
        else random.bytes(content.subarray(page * 4096).subarray(0, 4));
      }
    }
    block.source.write(content);
    pipeline.mark(0, changed);
    pipeline.send();
    pipeline.sender.fence(round);
    expectSame([block]);
  }
  await pipeline.end();
  expect(pipeline.sent.read("delta")).toBeGreaterThan(0);
  expect(pipeline.sent.read("deltaOverflows")).toBeGreaterThan(0);
});

test(`what is sent while auto is off is never what a delta is based on when it is back (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const block = makeBlock();
  const auto = codec("zstd", PATIENT);
  const shrinking = { cacheBytes: WHOLE, xbzrle: false, codec: auto };
  const pipeline = await Pipeline.start(pairs, [block], true, shrinking);
  const pages = pipeline.sendAll();
  let isAuto = true;
  for (let round = 2; round <= 60; round += 1) {
    if (random.below(3) === 0) isAuto = !isAuto;
    pipeline.codec = isAuto ? auto : codec("zstd");
    const content = block.source.read();
    const changed = new Set<number>();
    for (let count = 0; count < pages / 4; count += 1) {
      const page = random.below(pages);
      changed.add(page);
      random.bytes(content.subarray(page * 4096).subarray(0, 4));
    }
    block.source.write(content);
    pipeline.mark(0, changed);
    const before = pipeline.sent.read("delta");
    pipeline.send();
    pipeline.sender.fence(round);
    expectSame([block]);
    if (!isAuto) expect(pipeline.sent.read("delta")).toBe(before);
  }
  await pipeline.end();
  expect(pipeline.sent.read("delta")).toBeGreaterThan(0);
});

test("a page that becomes zero, and one that ceases to be, are compared with what they were", async () => {
  const block = makeBlock(64 * 4096);
  const pipeline = await Pipeline.start(pairs, [block], false, { cacheBytes: WHOLE });
  const text = block.source.read();
  for (const content of [text, new Uint8Array(text.length), text.slice().fill(1, 0, 10)]) {
    block.source.write(content);
    pipeline.sendAll();
    pipeline.sender.fence(1);
    expectSame([block]);
  }
  block.source.write(new Uint8Array(text.length).fill(9, 4090, 4100));
  pipeline.sendAll();
  pipeline.sender.fence(2);
  block.source.write(new Uint8Array(text.length));
  pipeline.sendAll();
  await pipeline.end();
  expectSame([block]);
  // In the last round all were zero, and all but the first two had been: those are unchanged.
  expect(pipeline.sent.read("unchanged")).toBe(62);
});

test(`without room for a single page there are no deltas, and all arrives (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (const cacheBytes of [1, 1024, 4095]) {
    const blocks = makeGuest(random, null);
    const pipeline = await Pipeline.start(pairs, blocks, false, { cacheBytes });
    for (let round = 1; round <= 3; round += 1) {
      change(random, blocks);
      pipeline.sendAll();
    }
    await pipeline.end();
    expectSame(blocks);
    expect(pipeline.sent.read("deltaHits") + pipeline.sent.read("deltaMisses")).toBe(0);
  }
});

test(`a cache of a few pages, or of just all of them, keeps everything right (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const whole = shardBytes(sendBlocksOf(makeGuest(random, null)), 1);
  for (const cacheBytes of [64 * KIB, 200 * KIB, whole - 1, whole, 4 * whole]) {
    const blocks = makeGuest(random, null);
    const pipeline = await Pipeline.start(pairs, blocks, false, { cacheBytes });
    pipeline.sendAll();
    for (let round = 2; round <= 8; round += 1) {
      for (const [index, changed] of change(random, blocks).entries()) {
        pipeline.mark(index, changed);
      }
      pipeline.send();
    }
    await pipeline.end();
    expectSame(blocks);
    if (cacheBytes > whole / 2) expect(pipeline.sent.read("deltaHits")).toBeGreaterThan(0);
    // The first round fills the cache. Only one that holds everything never misses after that.
    const all = blocks.reduce((sum, block) => sum + block.sizeBytes / block.pageBytes, 0);
    const misses = pipeline.sent.read("deltaMisses");
    expect(misses).toBeGreaterThanOrEqual(all);
    if (cacheBytes >= whole) expect(misses).toBe(all);
    if (cacheBytes < whole / 2) expect(misses).toBeGreaterThan(all);
  }
});

for (const firstSequence of [2 ** 26 - 7, 2 ** 32 - 7]) {
  test(`deltas go on where generations begin anew: sequence ${firstSequence} (SEED=${seed})`, async () => {
    const random = new Prng(seed);
    const blocks = makeGuest(random, null);
    const shrinking = { cacheBytes: WHOLE, firstSequence };
    const pipeline = await Pipeline.start(pairs, blocks, true, shrinking);
    for (let round = 1; round <= 6; round += 1) {
      change(random, blocks);
      pipeline.sendAll();
      pipeline.sender.fence(round);
      expectSame(blocks);
    }
    await pipeline.end();
    expect(pipeline.sent.read("delta")).toBeGreaterThan(0);
    expect(pipeline.received.read("delta")).toBe(pipeline.sent.read("delta"));
  });
}

for (const [name, shrinking] of Object.entries(WAYS)) {
  test(`the guest writes while its pages are looked at, and the end state is exact: ${name}`, async () => {
    const block = makeBlock();
    const pipeline = await Pipeline.start(pairs, [block], false, shrinking);
    assert(block.source.place.kind === "shared", "threads can reach the guest");
    const guest = new Uint8Array(block.source.place.buffer, 0, block.sizeBytes);
    const words = new Int32Array(new SharedArrayBuffer(8));
    const url = new URL("./fixtures/wire-scribbler.ts", import.meta.url);
    const thread = new Worker(url, { workerData: { target: guest, words } });
    const ended = once(thread, "exit");
    Atomics.wait(words, 0, 0);
    for (let round = 0; round < 8; round += 1) pipeline.sendAll();
    Atomics.store(words, 1, 1);
    expect(await ended).toEqual([0]);
    pipeline.sendAll();
    expect(await pipeline.end()).toEqual({ state: "done", pages: 0 });
    expectSame([block]);
  });
}

/** Calls `look` whenever a page's version is looked up: the page was copied, and nothing said of it yet. */
function onLookup(look: (page: number) => void): void {
  const { find } = DeltaCache.prototype;
  const spy = vi.spyOn(DeltaCache.prototype, "find");
  onTestFinished(() => spy.mockRestore());
  spy.mockImplementation(function (this: DeltaCache, key, round) {
    look(key);
    return find.call(this, key, round);
  });
}

for (const [name, shrinking] of Object.entries({
  xbzrle: { cacheBytes: WHOLE },
  "xbzrle and zstd": { cacheBytes: WHOLE, codec: codec("zstd") },
  auto: { cacheBytes: WHOLE, codec: codec("zstd", { isAuto: true, extraTime: 1000 }) },
})) {
  test(`what is written to a page between its copy and its delta is in the next delta: ${name} (SEED=${seed})`, async () => {
    const random = new Prng(seed);
    const block = makeBlock();
    const pipeline = await Pipeline.start(pairs, [block], false, shrinking);
    assert(block.source.place.kind === "shared", "the test reaches the guest");
    const guest = new Uint8Array(block.source.place.buffer, 0, block.sizeBytes);
    // No byte is written twice, so that nobody mends what was missed.
    const offset = random.below(4096 - 16);
    let round = 1;
    let writes = 0;
    onLookup((page) => {
      // The last round has what the one before it missed.
      if (round === 6 || random.below(3) === 0) return;
      const at = page * 4096 + offset + round;
      guest[at] = (guest[at] ?? 0) ^ 0x5a;
      pipeline.mark(0, [page]);
      writes += 1;
    });
    pipeline.sendAll();
    for (round = 2; round <= 6; round += 1) pipeline.send();
    expect(await pipeline.end()).toEqual({ state: "done", pages: 0 });
    expect(writes).toBeGreaterThan(600);
    expect(pipeline.sent.read("delta")).toBeGreaterThan(300);
    expectSame([block]);
  });
}

test(`auto gives deltas up where they take longer than sending, and has them back (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  // Time goes by where the test says so: in looking a version up, and in writing a frame.
  let ms = 0;
  let writeMs = 1;
  const never = (): (() => void) => () => {};
  onTestFinished(useClock({ nowMs: () => ms, cpuMs: () => 0, after: never, every: never }));
  onLookup(() => {
    ms += 0.02;
  });
  const { write } = FrameWriter.prototype;
  const spy = vi.spyOn(FrameWriter.prototype, "write");
  onTestFinished(() => spy.mockRestore());
  spy.mockImplementation(function (this: FrameWriter, ...frame) {
    write.call(this, ...frame);
    ms += writeMs;
    return { elapsedMs: writeMs, waitedMs: writeMs };
  });
  const block = makeBlock(12 * MIB);
  const pages = block.sizeBytes / 4096;
  const content = block.source.read();
  random.bytes(content);
  const shrinking = { cacheBytes: WHOLE, codec: codec("zstd", { isAuto: true }) };
  const pipeline = await Pipeline.start(pairs, [block], false, shrinking);
  const deltasOf = (round: number): number => {
    for (let page = 0; page < pages; page += 1) content[page * 4096 + round] = random.below(256);
    block.source.write(content);
    const before = pipeline.sent.read("delta") + pipeline.sent.read("unchanged");
    pipeline.sendAll();
    return pipeline.sent.read("delta") + pipeline.sent.read("unchanged") - before;
  };
  expect(deltasOf(1)).toBe(0);
  // What half a MiB takes: 1 ms, and 2.56 ms to compare it. This is known after some MiB of it.
  const tried = deltasOf(2);
  expect(tried).toBeGreaterThan(1000);
  expect(tried).toBeLessThan(pages);
  // Two frames, which go by their first chunks.
  const scouts = (2 * 512 * KIB) / 4096;
  expect([deltasOf(3), deltasOf(4)]).toEqual([scouts, scouts]);
  expect(pipeline.sent.read("deltaChoice")).toBe(2);
  expect(pipeline.sent.read("deltaComparingMsPerMiB")).toBeCloseTo(5.12);
  // Two, and what little was sent as deltas had to wait for, too.
  expect(pipeline.sent.read("deltaWholeMsPerMiB")).toBeGreaterThan(1.9);
  expect(pipeline.sent.read("deltaWholeMsPerMiB")).toBeLessThan(5.12 / 1.1);
  writeMs = 50;
  deltasOf(5);
  deltasOf(6); // What it finds brings them back; versions of the others are remembered anew.
  expect(deltasOf(7)).toBe(pages);
  expect(pipeline.sent.read("deltaChoice")).toBe(1);
  expect(pipeline.sent.read("deltaChoiceChanges")).toBe(2);
  expect(await pipeline.end()).toEqual({ state: "done", pages: 0 });
  expectSame([block]);
});

test(`codecs and levels change between frames, and all arrives (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const blocks = makeGuest(random, 4096);
  const pipeline = await Pipeline.start(pairs, blocks, true, { cacheBytes: WHOLE });
  const none = codec("zstd", { codec: 0 });
  const settings = [none, codec("zstd"), codec("deflate", { level: 9 }), codec("zstd", AUTO)];
  for (let round = 1; round <= 16; round += 1) {
    change(random, blocks);
    pipeline.codec = must(settings[random.below(settings.length)], "there are settings");
    pipeline.sendAll();
    pipeline.sender.fence(round);
    expectSame(blocks);
  }
  await pipeline.end();
});

const AUTO = { isAuto: true, cpuShare: 0.5 };

test("all frames are compressed by the codec that was set for them", async () => {
  for (const { name, number } of CODECS) {
    const frames = await sendIntoFile({ codec: codec(name) }, (send) => send());
    expect(new Set(frames.map((frame) => frame.codec))).toEqual(new Set([number]));
  }
});

interface SeenFrame {
  readonly block: number;
  readonly codec: number;
  readonly encodings: readonly number[];
}

/** Writes of a round before the one that fails: both frames of the first block, one of the second. */
const WRITES_BEFORE_CUT = 3;

/**
 * Sends rounds of everything into a file, from which the frames are read. Where `isCut`, the round
 * fails in its second block.
 */
async function sendIntoFile(
  shrinking: Shrinking,
  work: (send: (options?: { isCut: boolean }) => void) => void,
): Promise<SeenFrame[]> {
  const path = join(folder, "stream");
  const fd = openSync(path, "w");
  const guest = [makeBlock(1 * MIB), { ...makeBlock(1 * MIB), name: "large", pageBytes: 16_384 }];
  const blocks = sendBlocksOf(guest);
  const sender = new PageSender(sendSetupOf(blocks, false, shrinking), placeOf(fd), null);
  const { writeSync } = fs;
  let [hasCut, writes, round] = [false, 0, 0];
  fs.writeSync = ((...given: Parameters<typeof writeSync>) => {
    writes += 1;
    if (hasCut && writes > WRITES_BEFORE_CUT)
      throw Object.assign(new Error("cut"), { code: "EPIPE" });
    return writeSync(...given);
  }) as typeof writeSync;
  syncBuiltinESMExports();
  try {
    work(({ isCut } = { isCut: false }) => {
      [hasCut, writes] = [isCut, 0];
      round += 1;
      for (const [index, block] of blocks.entries()) {
        markPages(block, Array(block.pageCount).keys());
        sender.send(index, chunksOf(block), round);
      }
    });
  } finally {
    fs.writeSync = writeSync;
    syncBuiltinESMExports();
    closeSync(fd);
  }
  return [...framesOf(readFileSync(path))];
}

function* framesOf(stream: Buffer): Generator<SeenFrame> {
  for (let at = 0; at < stream.length; ) {
    const body = stream.subarray(
      at + HEADER_BYTES,
      at + HEADER_BYTES + stream.readUInt32LE(at + 12),
    );
    assert(stream.readUInt8(at + 4) === KIND.pages, "nothing but pages was sent");
    const runs = Array.from({ length: body.readUInt16LE(4) }, (_, index) => index);
    const encodings = runs.map((run) => body.readUInt8(PAGES_HEAD_BYTES + run * RUN_BYTES + 6));
    yield { block: body.readUInt32LE(0), codec: body.readUInt8(6), encodings };
    at += HEADER_BYTES + body.length;
  }
}

test("after a write that failed nothing is based on what may not have arrived, in any block", async () => {
  const still = await sendIntoFile({ cacheBytes: WHOLE }, (send) => {
    send();
    send();
  });
  expect(
    still.map(({ block }) => block),
    "what did not change is not sent",
  ).toEqual([0, 0, 1, 1]);
  const cut = await sendIntoFile({ cacheBytes: WHOLE }, (send) => {
    expect(() => send({ isCut: true })).toThrow(expect.objectContaining({ code: "CHANNEL_LOST" }));
    send();
  });
  expect(cut.map(({ block }) => block)).toEqual([0, 0, 1, 0, 0, 1, 1]);
  for (const { encodings } of cut) expect(encodings).toEqual([ENCODING.raw]);
});
