import { assert, must } from "../base/assert.ts";

/** Slots per channel in the beginning: the share of one that others must carry is that fine. */
const SLOTS_PER_CHANNEL = 16;

/**
 * Which channel a chunk is at home in. Chunks take turns in slots, so that a hot region of the guest
 * is spread over all channels, and each slot is one channel's. A home keeps a chunk's versions in
 * one cache; it changes only between rounds (everything is fenced then), by as few slots as do.
 */
export class Shards {
  readonly #slots: number[];

  constructor(channels: number) {
    assert(channels > 0, "somebody owns every chunk");
    const slots = channels * SLOTS_PER_CHANNEL;
    this.#slots = Array.from({ length: slots }, (_, slot) => 1 + (slot % channels));
  }

  get slotCount(): number {
    return this.#slots.length;
  }

  homeOf(chunk: number): number {
    return this.#slots[chunk % this.#slots.length] as number;
  }

  /** Slots by channel. */
  get shares(): ReadonlyMap<number, number> {
    const shares = new Map<number, number>();
    for (const channel of this.#slots) shares.set(channel, (shares.get(channel) ?? 0) + 1);
    return shares;
  }

  /** Gives every channel as many slots as `wanted` says; who has too many passes the rest on. */
  share(wanted: ReadonlyMap<number, number>): void {
    const total = [...wanted.values()].reduce((sum, slots) => sum + slots, 0);
    assert(total === this.#slots.length, "every slot is somebody's");
    const left = new Map(wanted);
    const free: number[] = [];
    for (const [slot, channel] of this.#slots.entries()) {
      const slots = left.get(channel) ?? 0;
      if (slots > 0) left.set(channel, slots - 1);
      else free.push(slot);
    }
    const lacking = [...left].flatMap(([channel, slots]) => Array<number>(slots).fill(channel));
    for (const [index, slot] of free.entries()) {
      this.#slots[slot] = must(lacking[index], "as many are lacking as are free");
    }
  }
}
