import { assert } from "../base/assert.ts";

/** A place in the cache for one page. */
const EMPTY = -1;

/** Rounds without use after which an entry gives way to another page; QEMU counts alike. */
const AGE_ROUNDS = 2;

/** A cache for less of the memory gains too little by what the first round leaves in it. */
const FILLED_FIRST_SHARE = 0.5;

/** Odd, as regular distances are mostly powers of two; and more pages than often lie together. */
const LAP_SHIFT = 65;

/** What a block's pages need of a cache. */
interface CachedBlock {
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesPerChunk: number;
}

/**
 * What tells pages of blocks apart within the cache of their page size: a page's key is its number
 * and its block's first key, which begins with a chunk of the first channel.
 */
export function firstKeys(blocks: readonly CachedBlock[], channels: number): number[] {
  const next = new Map<number, number>();
  return blocks.map((block) => {
    const firstKey = next.get(block.pageBytes) ?? 0;
    next.set(block.pageBytes, firstKey + slotsOf(block, channels) * channels);
    return firstKey;
  });
}

/** What a cache needs to hold every page of a shard, whichever channel's. */
export function shardBytes(blocks: readonly CachedBlock[], channels: number): number {
  return blocks.reduce((sum, block) => sum + slotsOf(block, channels) * block.pageBytes, 0);
}

/** A shard is every n-th chunk of a block, so at most its n-th part in whole chunks. */
function slotsOf({ pageCount, pagesPerChunk }: CachedBlock, channels: number): number {
  return Math.ceil(pageCount / (pagesPerChunk * channels)) * pagesPerChunk;
}

/** What a lookup found: where the cached version lies, and which version it is. */
export interface CachedVersion {
  readonly at: number;
  readonly generation: number;
}

/**
 * The versions of pages that the destination has, as far as they fit: the bytes that were sent, each
 * with its generation. One worker's, for the shard it owns; what of it somebody else has sent
 * meanwhile is forgotten before it is looked up. Direct-mapped: a page has one slot, and an entry that was used
 * lately keeps it, so that a sweep through cold memory does not wipe out the hot pages.
 *
 * The bytes lie in the worker's wasm memory, where kernels compare them in place.
 */
export class DeltaCache {
  readonly slots: number;
  readonly #bytes: Uint8Array;
  readonly #at: number;
  readonly #pageBytes: number;
  readonly #pagesPerChunk: number;
  readonly #channels: number;
  readonly #keys: Float64Array;
  readonly #generations: Uint32Array;
  readonly #usedRounds: Uint32Array;
  readonly #firstRound: number;
  /** Versions that gave way to another page's. */
  evictions = 0;
  /** Versions that were not remembered, as their slot was another page's; see `isCrowded`. */
  refusals = 0;

  /**
   * `bytes` is the wasm memory; the cache takes `slots` pages of `pageBytes` from `at` on, for a
   * shard of `shardPages`.
   */
  constructor(
    memory: { bytes: Uint8Array; at: number },
    size: {
      readonly slots: number;
      readonly shardPages: number;
      readonly pageBytes: number;
      readonly pagesPerChunk: number;
      readonly channels: number;
    },
  ) {
    assert(size.slots > 0 && Number.isInteger(size.slots), "a cache has whole slots");
    assert(
      memory.at + size.slots * size.pageBytes <= memory.bytes.length,
      "a cache fits its memory",
    );
    this.slots = size.slots;
    this.#bytes = memory.bytes;
    this.#at = memory.at;
    this.#pageBytes = size.pageBytes;
    this.#pagesPerChunk = size.pagesPerChunk;
    this.#channels = size.channels;
    this.#keys = new Float64Array(size.slots).fill(EMPTY);
    this.#generations = new Uint32Array(size.slots);
    this.#usedRounds = new Uint32Array(size.slots);
    this.#firstRound = size.slots >= size.shardPages * FILLED_FIRST_SHARE ? 1 : 2;
  }

  /** Whether versions that are sent in this round may be stored; before, there are none. */
  isOpen(round: number): boolean {
    return round >= this.#firstRound;
  }

  /**
   * Whether a version that finds no room in this round is one too many. The first round brings all
   * there is, and most of it is not written again.
   */
  isCrowded(round: number): boolean {
    return this.isOpen(round) && round > 1;
  }

  /** The cached version of page `key`, see `firstKeys`, or null. */
  find(key: number, round: number): CachedVersion | null {
    const slot = this.#slotOf(key);
    if (this.#keys[slot] !== key) return null;
    this.#usedRounds[slot] = round;
    return { at: this.#at + slot * this.#pageBytes, generation: this.#generations[slot] as number };
  }

  /**
   * Whether it has a version of page `key`, or has room for one. Then the next version must be
   * stored: an entry follows what the destination gets.
   */
  wants(key: number, round: number): boolean {
    if (!this.isOpen(round)) return false;
    const slot = this.#slotOf(key);
    const held = this.#keys[slot];
    if (held === EMPTY || held === key) return true;
    return round - (this.#usedRounds[slot] as number) >= AGE_ROUNDS;
  }

  /**
   * Remembers the version that was just sent. Returns false when the slot belongs to another page
   * that was used lately; a page that has an entry always gets its new version in. One that gets in
   * anew was not of use yet, and gives way a round sooner than one that was: so a first round that
   * fills the cache does no harm, and who is found in the second one has proven to be worth a slot.
   */
  store(key: number, source: Uint8Array, version: { generation: number; round: number }): boolean {
    assert(source.length === this.#pageBytes, "an entry is one page");
    if (!this.wants(key, version.round)) {
      if (this.isCrowded(version.round)) this.refusals += 1;
      return false;
    }
    const slot = this.#slotOf(key);
    const held = this.#keys[slot];
    if (held !== EMPTY && held !== key) this.evictions += 1;
    this.#keys[slot] = key;
    this.#generations[slot] = version.generation;
    this.#usedRounds[slot] = version.round - (held === key ? 0 : 1);
    this.#bytes.set(source, this.#at + slot * this.#pageBytes);
    return true;
  }

  /**
   * The pages of a shard are counted without the chunks between, so that they are spread over all
   * slots, and none is shared while there are enough. Beyond that, each lap around the slots begins
   * a little further on: pages at regular distances would otherwise meet in a few slots again and
   * again, and leave the others empty.
   */
  #slotOf(key: number): number {
    const chunk = Math.floor(key / (this.#pagesPerChunk * this.#channels));
    const position = chunk * this.#pagesPerChunk + (key % this.#pagesPerChunk);
    return (position + Math.floor(position / this.slots) * LAP_SHIFT) % this.slots;
  }

  /** Forgets page `key`, of which another channel has sent a version. */
  forget(key: number): void {
    const slot = this.#slotOf(key);
    if (this.#keys[slot] === key) this.#keys[slot] = EMPTY;
  }

  /** Forgets everything: versions that were sent may not have arrived. */
  clear(): void {
    this.#keys.fill(EMPTY);
  }
}
