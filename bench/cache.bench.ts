import { MIB } from "../base/units.ts";
import { Prng } from "../test/prng.ts";
import { DeltaCache } from "../workers/delta-cache.ts";
import { type Benchmark, gbps, median, type Report } from "./measure.ts";
import { PAGE_BYTES } from "./workloads.ts";

const SMOKE = {
  memoryPages: 2048,
  /** The cache has room for one page of so many. */
  cachePart: 4,
  rounds: 12,
  /** Memory whose pages are copied into a cache, to see what that takes. */
  fillBytes: 1 * MIB,
  timings: 2,
};

/**
 * What the policy of the cache of sent versions is worth: the share of dirty pages of which the
 * cache has the version, in simulated rounds, for ours and for what else it could be. As in a
 * migration, a round visits its dirty pages in the order of memory, and the first one all there are.
 */
export const cache: Benchmark<typeof SMOKE> = {
  name: "cache",
  about:
    "hits of the cache of sent versions, by policy, and what filling it in the first round does",
  smoke: SMOKE,
  real: { memoryPages: 65_536, cachePart: 4, rounds: 30, fillBytes: 256 * MIB, timings: 7 },

  async run(report, parameters) {
    comparePolicies(report, parameters);
    compareFilling(report, parameters);
    timeFilling(report, parameters);
  },
};

interface Size {
  readonly pages: number;
  readonly slots: number;
}

/** Adds the pages that a guest writes in a round. Round 1 is everything, and not asked for. */
type Guest = (dirty: Set<number>, round: number, size: Size, random: Prng) => void;

/** Guests write most of all in some neighbourhoods: so many pages side by side. */
const CLUSTER_PAGES = 16;

const GUESTS: Readonly<Record<string, Guest>> = {
  "hot pages for half the cache, and some of the rest": (dirty, _round, size, random) => {
    addHot(dirty, size, 0);
    addAnywhere(dirty, size.slots / 4, size, random);
  },
  "hot pages for half the cache, and a sweep": (dirty, round, size) => {
    addHot(dirty, size, 0);
    addInLine(dirty, { first: round * size.slots, count: size.slots, step: 1 }, size);
  },
  "hot pages that are others every six rounds": (dirty, round, size, random) => {
    addHot(dirty, size, Math.floor(round / 6));
    addAnywhere(dirty, size.slots / 4, size, random);
  },
  "every eighth page": (dirty, _round, size) => {
    const step = 8;
    addInLine(dirty, { first: 0, count: size.pages / step, step }, size);
  },
  "16 pages of every 128": (dirty, _round, size) => {
    for (let first = 0; first < size.pages; first += 128) {
      addInLine(dirty, { first, count: 16, step: 1 }, size);
    }
  },
  "pages for twice the cache, side by side": (dirty, _round, size) => {
    addInLine(dirty, { first: 0, count: 2 * size.slots, step: 1 }, size);
  },
  "pages anywhere": (dirty, _round, size, random) => {
    addAnywhere(dirty, size.slots, size, random);
  },
};

/** Clusters anywhere in memory, half as many pages as the cache has room for. */
function addHot(dirty: Set<number>, size: Size, which: number): void {
  const random = new Prng(which);
  for (let cluster = 0; cluster < size.slots / 2 / CLUSTER_PAGES; cluster += 1) {
    const first = random.below(size.pages / CLUSTER_PAGES) * CLUSTER_PAGES;
    addInLine(dirty, { first, count: CLUSTER_PAGES, step: 1 }, size);
  }
}

function addAnywhere(dirty: Set<number>, count: number, { pages }: Size, random: Prng): void {
  for (let index = 0; index < count; index += 1) dirty.add(random.below(pages));
}

function addInLine(
  dirty: Set<number>,
  { first, count, step }: { first: number; count: number; step: number },
  { pages }: Size,
): void {
  for (let index = 0; index < count; index += 1) dirty.add((first + index * step) % pages);
}

/** What a policy must do; see `DeltaCache`. */
interface Policy {
  find(page: number, round: number): boolean;
  store(page: number, round: number): void;
}

const POLICIES: Readonly<Record<string, (slots: number) => Policy>> = {
  ours: (slots) => new Ours(slots),
  "QEMU's, given up after 2 rounds": (slots) => new Aged(slots, 2),
  "no ageing, the last comer stays": (slots) => new Aged(slots, 0),
  "no ageing, the first comer stays": (slots) => new Aged(slots, Number.POSITIVE_INFINITY),
  "given up after 1 round": (slots) => new Aged(slots, 1),
  "given up after 4 rounds": (slots) => new Aged(slots, 4),
  "4 ways, the oldest goes": (slots) => new Recent(slots, 4),
  "any slot, the oldest goes": (slots) => new Recent(slots, slots),
};

function comparePolicies(report: Report, parameters: typeof SMOKE): void {
  const means = new Map<string, number>();
  for (const [guest, dirtyIn] of Object.entries(GUESTS)) {
    for (const [policy, make] of Object.entries(POLICIES)) {
      const value = 100 * hitShare(dirtyIn, make, parameters);
      report({ name: `${policy}: ${guest}`, value, unit: "%" });
      means.set(policy, (means.get(policy) ?? 0) + value / Object.keys(GUESTS).length);
    }
  }
  for (const [policy, value] of means) report({ name: `${policy}: mean`, value, unit: "%" });
}

/** A migration that ends well has no more: whatever is gained only after them is gained too late. */
const FEW_ROUNDS = 6;

/** Filling in the first round, for caches that hold all memory and for those that do not. */
function compareFilling(report: Report, parameters: typeof SMOKE): void {
  const rounds = Math.min(parameters.rounds, FEW_ROUNDS);
  for (const cachePart of [1, 2, 4, 16]) {
    for (const isFilledFirst of [true, false]) {
      const given = { ...parameters, rounds, cachePart, isFilledFirst };
      const shares = Object.values(GUESTS).map((guest) => {
        return hitShare(guest, (slots) => new Ours(slots), given);
      });
      const name = `cache 1/${cachePart} of memory, ${isFilledFirst ? "filled" : "empty"} after round 1`;
      const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
      report({
        name,
        value: 100 * mean,
        unit: "%",
        detail: `mean of all guests, ${rounds} rounds`,
      });
    }
  }
}

/** The share of dirty pages that are found, from round 2 on: whoever fills late pays for it. */
function hitShare(
  guest: Guest,
  make: (slots: number) => Policy,
  given: typeof SMOKE & { readonly isFilledFirst?: boolean },
): number {
  const { memoryPages: pages, rounds, cachePart, isFilledFirst = cachePart === 1 } = given;
  const slots = Math.floor(pages / cachePart);
  const policy = make(slots);
  const random = new Prng(1);
  if (isFilledFirst) for (let page = 0; page < pages; page += 1) policy.store(page, 1);
  let [hits, total] = [0, 0];
  for (let round = 2; round <= rounds; round += 1) {
    const dirty = new Set<number>();
    guest(dirty, round, { pages, slots: Math.floor(pages / 4) }, random);
    for (const page of [...dirty].sort((one, other) => one - other)) {
      if (policy.find(page, round)) hits += 1;
      policy.store(page, round);
      total += 1;
    }
  }
  return hits / total;
}

/** The time that it takes to keep a copy of every page that is sent. */
function timeFilling(report: Report, { fillBytes, timings }: typeof SMOKE): void {
  const pages = fillBytes / PAGE_BYTES;
  const { buffer } = new WebAssembly.Memory({ initial: (fillBytes / 65_536) | 0 });
  const source = new Uint8Array(fillBytes).fill(1);
  const bytes = new Uint8Array(buffer).fill(1);
  const size = {
    slots: pages,
    shardPages: pages,
    pageBytes: PAGE_BYTES,
    pagesPerChunk: 512,
    channels: 1,
  };
  const times = Array.from({ length: timings }, () => {
    const kept = new DeltaCache({ bytes, at: 0 }, size);
    const startMs = performance.now();
    for (let page = 0; page < pages; page += 1) {
      const at = page * PAGE_BYTES;
      kept.store(page, source.subarray(at, at + PAGE_BYTES), { generation: 1, round: 1 });
    }
    return performance.now() - startMs;
  });
  report({ name: "filling", value: gbps(fillBytes, median(times)), unit: "GB/s" });
}

/** The engine's cache, with pages of a byte: only whether they are there is looked at. */
class Ours implements Policy {
  readonly #cache: DeltaCache;
  readonly #page = new Uint8Array(1);

  constructor(slots: number) {
    // Whether the first round fills it is this benchmark's to say.
    const size = { slots, shardPages: slots, pageBytes: 1, pagesPerChunk: 512, channels: 1 };
    this.#cache = new DeltaCache({ bytes: new Uint8Array(slots), at: 0 }, size);
  }

  find(page: number, round: number): boolean {
    return this.#cache.find(page, round) !== null;
  }

  store(page: number, round: number): void {
    this.#cache.store(page, this.#page, { generation: 1, round });
  }
}

/** One slot for a page; who was not used for so many rounds gives way. */
class Aged implements Policy {
  readonly #pages: Int32Array;
  readonly #used: Float64Array;
  readonly #rounds: number;

  constructor(slots: number, rounds: number) {
    this.#pages = new Int32Array(slots).fill(-1);
    this.#used = new Float64Array(slots);
    this.#rounds = rounds;
  }

  find(page: number, round: number): boolean {
    const slot = page % this.#pages.length;
    if (this.#pages[slot] !== page) return false;
    this.#used[slot] = round;
    return true;
  }

  store(page: number, round: number): void {
    const slot = page % this.#pages.length;
    const held = this.#pages[slot];
    const isFree = held === -1 || held === page;
    if (!isFree && round - (this.#used[slot] as number) < this.#rounds) return;
    this.#pages[slot] = page;
    this.#used[slot] = round;
  }
}

/** So many slots for a page; who was used longest ago gives way, however lately that was. */
class Recent implements Policy {
  readonly #sets: readonly Set<number>[];
  readonly #ways: number;

  constructor(slots: number, ways: number) {
    this.#ways = ways;
    this.#sets = Array.from({ length: Math.floor(slots / ways) }, () => new Set<number>());
  }

  find(page: number, _round: number): boolean {
    return this.#setOf(page).has(page);
  }

  store(page: number, _round: number): void {
    const set = this.#setOf(page);
    set.delete(page);
    const [oldest] = set;
    if (set.size === this.#ways && oldest !== undefined) set.delete(oldest);
    set.add(page);
  }

  #setOf(page: number): Set<number> {
    return this.#sets[page % this.#sets.length] as Set<number>;
  }
}
