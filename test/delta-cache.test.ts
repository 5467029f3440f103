import { expect, test } from "vitest";
import { Shards } from "../engine/shards.ts";
import { DeltaCache, firstKeys, shardBytes } from "../workers/delta-cache.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const PAGE = 4096;

function cacheOf(
  slots: number,
  shape: { pagesPerChunk?: number; channels?: number; shardPages?: number } = {},
) {
  const at = 64;
  const bytes = new Uint8Array(at + slots * PAGE);
  const size = {
    slots,
    shardPages: slots,
    pageBytes: PAGE,
    pagesPerChunk: 32,
    channels: 1,
    ...shape,
  };
  return { bytes, cache: new DeltaCache({ bytes, at }, size) };
}

function page(fill: number): Uint8Array {
  return new Uint8Array(PAGE).fill(fill);
}

test("a version that was stored is found, with its generation and its bytes", () => {
  const { bytes, cache } = cacheOf(8);
  expect(cache.store(3, page(7), { generation: 99, round: 1 })).toBe(true);
  const found = cache.find(3, 1);
  expect(found?.generation).toBe(99);
  const at = found?.at ?? 0;
  expect(Buffer.compare(bytes.subarray(at, at + PAGE), page(7))).toBe(0);
  for (const key of [0, 2, 4, 11, 3 + 8 * 1000]) expect(cache.find(key, 1)).toBeNull();
});

test("a page that has an entry always gets its new version in", () => {
  const { bytes, cache } = cacheOf(4);
  for (let round = 1; round < 50; round += 1) {
    expect(cache.store(2, page(round), { generation: 1000 + round, round })).toBe(true);
    const found = cache.find(2, round);
    expect(found?.generation).toBe(1000 + round);
    expect(bytes[found?.at ?? 0]).toBe(round);
  }
});

/** A page that shares the slot of page `mine`, in a cache of its own. */
function rivalOf(mine: number, slots: number): number {
  for (let other = mine + 1; ; other += 1) {
    const { cache } = cacheOf(slots);
    cache.store(mine, page(0), { generation: 1, round: 1 });
    if (!cache.store(other, page(0), { generation: 1, round: 1 })) return other;
  }
}

test("an entry that was of use keeps its slot for two rounds, then gives way", () => {
  const { cache } = cacheOf(4);
  const [mine, other] = [1, rivalOf(1, 4)];
  cache.store(mine, page(1), { generation: 1, round: 1 });
  expect(cache.find(mine, 2)).not.toBeNull();
  cache.store(mine, page(1), { generation: 1, round: 2 });
  for (const round of [2, 3]) {
    expect(cache.store(other, page(2), { generation: 2, round })).toBe(false);
  }
  // To look is to use it, also where the page did not change.
  expect(cache.find(mine, 3)).not.toBeNull();
  expect(cache.store(other, page(2), { generation: 2, round: 4 })).toBe(false);
  expect(cache.find(other, 4)).toBeNull();
  expect(cache.store(other, page(2), { generation: 2, round: 5 })).toBe(true);
  expect(cache.find(mine, 5)).toBeNull();
  expect(cache.find(other, 5)?.generation).toBe(2);
});

test("an entry that was of no use yet keeps its slot for its own round only", () => {
  const { cache } = cacheOf(4);
  const [mine, other] = [1, rivalOf(1, 4)];
  cache.store(mine, page(1), { generation: 1, round: 1 });
  expect(cache.store(other, page(2), { generation: 2, round: 1 })).toBe(false);
  expect(cache.store(other, page(2), { generation: 2, round: 2 })).toBe(true);
  expect(cache.find(mine, 2)).toBeNull();
});

for (const [hot, each] of [
  [1, 4],
  [1, 8],
  [1, 64],
  [32, 512],
] as const) {
  test(`pages at regular distances share all slots: ${hot} of each ${each}`, () => {
    const slots = 1024;
    const { cache } = cacheOf(slots, { pagesPerChunk: 512 });
    let stored = 0;
    for (let first = 0; stored < slots / 2; first += each) {
      for (let key = first; key < first + hot; key += 1) {
        expect(cache.store(key, page(1), { generation: 1, round: 1 }), `${key}`).toBe(true);
        stored += 1;
      }
    }
  });
}

test("a sweep through cold memory leaves the hot pages in", () => {
  const slots = 64;
  const { cache } = cacheOf(slots);
  const hot = Array.from({ length: slots / 2 }, (_, index) => 2 * index);
  let generation = 1;
  const touch = (key: number, round: number) => {
    const isHit = cache.find(key, round) !== null;
    generation += 1;
    cache.store(key, page(0), { generation, round });
    return isHit;
  };
  for (const key of hot) touch(key, 1);
  for (let round = 2; round < 30; round += 1) {
    for (const key of hot) expect(touch(key, round)).toBe(true);
    for (let cold = slots; cold < 20 * slots; cold += 1) touch(cold, round);
  }
});

test("nothing is found after everything was forgotten", () => {
  const { cache } = cacheOf(16);
  for (let key = 0; key < 16; key += 1) cache.store(key, page(key), { generation: 5, round: 1 });
  cache.clear();
  for (let key = 0; key < 64; key += 1) expect(cache.find(key, 1)).toBeNull();
});

/** Blocks of a guest: some with few pages, some that end within a chunk, of several page sizes. */
function randomBlocks(random: Prng) {
  return Array.from({ length: 1 + random.below(6) }, () => {
    const pageBytes = PAGE * 4 ** random.below(3);
    const pagesPerChunk = Math.max(32, (128 * 1024 * 2 ** random.below(3)) / pageBytes);
    return { pageBytes, pagesPerChunk, pageCount: 1 + random.below(40 * pagesPerChunk) };
  });
}

/** Keys of the pages of one size that `channel` owns. */
function keysOf(
  blocks: ReturnType<typeof randomBlocks>,
  { pageBytes, channel, channels }: { pageBytes: number; channel: number; channels: number },
): number[] {
  const first = firstKeys(blocks, channels);
  const shards = new Shards(channels);
  return blocks.flatMap((block, index) => {
    if (block.pageBytes !== pageBytes) return [];
    const pages = Array.from({ length: block.pageCount }, (_, page) => page);
    const isOwn = (page: number) =>
      shards.homeOf(Math.floor(page / block.pagesPerChunk)) === channel;
    return pages.filter(isOwn).map((page) => (first[index] ?? 0) + page);
  });
}

/** All blocks of one size have the same chunks. */
function sameChunks(blocks: ReturnType<typeof randomBlocks>): ReturnType<typeof randomBlocks> {
  const bySize = new Map(blocks.map((block) => [block.pageBytes, block.pagesPerChunk]));
  return blocks.map((block) => ({ ...block, pagesPerChunk: bySize.get(block.pageBytes) ?? 32 }));
}

test(`every page of a guest has its own key (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 20; run += 1) {
    const blocks = sameChunks(randomBlocks(random));
    const channels = 1 + random.below(8);
    for (const { pageBytes } of blocks) {
      const keys = Array.from({ length: channels }, (_, index) =>
        keysOf(blocks, { pageBytes, channel: index + 1, channels }),
      ).flat();
      expect(new Set(keys).size).toBe(keys.length);
    }
  }
});

test(`a cache as large as a shard holds all of it (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 20; run += 1) {
    const blocks = sameChunks(randomBlocks(random));
    const channels = 1 + random.below(8);
    const pageBytes = blocks[0]?.pageBytes ?? PAGE;
    const pagesPerChunk = blocks[0]?.pagesPerChunk ?? 32;
    const ofSize = blocks.filter((block) => block.pageBytes === pageBytes);
    const slots = shardBytes(ofSize, channels) / pageBytes;
    for (const channel of [1, channels]) {
      const { cache } = cacheOf(slots, { pagesPerChunk, channels });
      const keys = keysOf(blocks, { pageBytes, channel, channels });
      for (const key of keys) {
        expect(cache.store(key, page(1), { generation: 1, round: 1 })).toBe(true);
      }
      for (const key of keys) expect(cache.find(key, 1)).not.toBeNull();
    }
  }
});

test(`shards together are little more than memory: whole chunks for everyone (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 200; run += 1) {
    const blocks = randomBlocks(random);
    const channels = 1 + random.below(8);
    const bytes = blocks.reduce((sum, block) => sum + block.pageCount * block.pageBytes, 0);
    const slack = blocks.reduce((sum, block) => {
      return sum + channels * block.pagesPerChunk * block.pageBytes;
    }, 0);
    expect(shardBytes(blocks, channels) * channels).toBeGreaterThanOrEqual(bytes);
    expect(shardBytes(blocks, channels) * channels).toBeLessThanOrEqual(bytes + slack);
  }
});

test(`a smaller cache uses all its slots, each for about as many pages (SEED=${seed})`, () => {
  const [pagesPerChunk, channels, channel] = [512, 4, 3];
  for (const slots of [100, 512, 1000, 4096]) {
    const block = { pageBytes: PAGE, pagesPerChunk, pageCount: 64 * pagesPerChunk * channels };
    const keys = keysOf([block], { pageBytes: PAGE, channel, channels });
    let kept = 0;
    const { cache } = cacheOf(slots, { pagesPerChunk, channels });
    for (const key of keys) {
      if (cache.store(key, page(0), { generation: 1, round: 1 })) kept += 1;
    }
    expect(kept).toBe(slots);
  }
});

test("the first round fills a cache for half of the memory, and none that is smaller", () => {
  for (const [shardPages, isFilled] of [
    [8, true],
    [16, true],
    [17, false],
    [1000, false],
  ] as const) {
    const { cache } = cacheOf(8, { shardPages });
    expect([cache.isOpen(1), cache.wants(3, 1)]).toEqual([isFilled, isFilled]);
    expect(cache.store(3, page(1), { generation: 1, round: 1 })).toBe(isFilled);
    expect(cache.find(3, 2) !== null).toBe(isFilled);
    expect([cache.isOpen(2), cache.wants(3, 2)]).toEqual([true, true]);
    expect(cache.store(3, page(2), { generation: 2, round: 2 })).toBe(true);
    expect(cache.find(3, 3)?.generation).toBe(2);
  }
});

test("versions that give way are counted, and those that find no room after the first round", () => {
  const { cache } = cacheOf(4);
  const rival = rivalOf(2, 4);
  const store = (key: number, round: number) => cache.store(key, page(0), { generation: 1, round });
  store(2, 1);
  expect(store(rival, 1), "all that there is").toBe(false);
  expect([cache.evictions, cache.refusals]).toEqual([0, 0]);
  cache.find(2, 2);
  store(2, 2);
  expect(store(rival, 2)).toBe(false);
  expect(store(rival, 3)).toBe(false);
  expect([cache.evictions, cache.refusals]).toEqual([0, 2]);
  expect(store(rival, 4)).toBe(true);
  store(rival, 5);
  expect([cache.evictions, cache.refusals]).toEqual([1, 2]);
});
