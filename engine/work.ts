import { must } from "../base/assert.ts";
import type { ScanPart } from "../workers/protocol.ts";

/** Chunks of one block, in rising order, and how much of each there is to do. */
export interface Batch {
  readonly block: number;
  readonly part: ScanPart;
  readonly chunks: readonly number[];
  readonly bytes: readonly number[];
}

/** Chunks of one block that wait; those before `head` were taken. */
interface Lot {
  readonly block: number;
  readonly part: ScanPart;
  readonly chunks: number[];
  readonly bytes: number[];
  head: number;
}

/**
 * What is left to do in one pass over the dirty memory, by channel. A chunk is in one place at a time: it
 * waits, or a thread was given it; so it travels in one channel at the most, until it is put back.
 */
export class Work {
  readonly #lots = new Map<number, Lot[]>();
  readonly #queuedBytes = new Map<number, number>();

  queuedBytes(channel: number): number {
    return this.#queuedBytes.get(channel) ?? 0;
  }

  /** Whether nothing waits; what threads were given is theirs. */
  get isEmpty(): boolean {
    return [...this.#lots.values()].every((lots) => lots.length === 0);
  }

  /** Lets a chunk wait, behind those that do. */
  add(
    channel: number,
    where: { block: number; part: ScanPart },
    chunk: number,
    bytes: number,
  ): void {
    const lots = this.#lotsOf(channel);
    let lot = lots.at(-1);
    if (lot?.block !== where.block || lot.part !== where.part) {
      lot = { block: where.block, part: where.part, chunks: [], bytes: [], head: 0 };
      lots.push(lot);
    }
    lot.chunks.push(chunk);
    lot.bytes.push(bytes);
    this.#count(channel, bytes);
  }

  /** Chunks that a thread has not begun wait again, before all others. */
  putBack(channel: number, { block, part, chunks, bytes }: Batch): void {
    if (chunks.length === 0) return;
    this.#lotsOf(channel).unshift({ block, part, chunks: [...chunks], bytes: [...bytes], head: 0 });
    for (const each of bytes) this.#count(channel, each);
  }

  /** The next chunks, of one block; as many as make `bytesMax` or more. Null when none wait. */
  take(channel: number, bytesMax: number, chunksMax: number): Batch | null {
    const lots = this.#lotsOf(channel);
    const lot = lots[0];
    if (lot === undefined) return null;
    const first = lot.head;
    let bytes = 0;
    while (lot.head < lot.chunks.length && bytes < bytesMax && lot.head - first < chunksMax) {
      bytes += must(lot.bytes[lot.head], "every chunk has bytes");
      lot.head += 1;
    }
    const { block, part } = lot;
    if (lot.head === lot.chunks.length) lots.shift();
    this.#count(channel, -bytes);
    const taken = lot.chunks.slice(first, lot.head).map((chunk, index) => {
      return { chunk, bytes: must(lot.bytes[first + index], "every chunk has bytes") };
    });
    // What was given back or moved came in any order. Threads put pages together as they rise.
    taken.sort((a, b) => a.chunk - b.chunk);
    const chunks = taken.map(({ chunk }) => chunk);
    return { block, part, chunks, bytes: taken.map((each) => each.bytes) };
  }

  /** Moves chunks from the end of one channel's queue to another's, `bytes` or a chunk more. */
  move(from: number, to: number, bytes: number): void {
    const lots = this.#lotsOf(from);
    for (let moved = 0; moved < bytes; ) {
      const lot = lots.at(-1);
      if (lot === undefined) return;
      const chunk = must(lot.chunks.pop(), "a lot has chunks");
      const size = must(lot.bytes.pop(), "every chunk has bytes");
      if (lot.head === lot.chunks.length) lots.pop();
      this.#count(from, -size);
      this.add(to, lot, chunk, size);
      moved += size;
    }
  }

  /** Hands all that waits for a channel to those that `heirOf` names. */
  drain(channel: number, heirOf: (chunk: number) => number): void {
    const lots = this.#lotsOf(channel).splice(0);
    this.#queuedBytes.delete(channel);
    for (const lot of lots) {
      for (let at = lot.head; at < lot.chunks.length; at += 1) {
        const chunk = must(lot.chunks[at], "a lot has chunks");
        this.add(heirOf(chunk), lot, chunk, must(lot.bytes[at], "every chunk has bytes"));
      }
    }
  }

  #lotsOf(channel: number): Lot[] {
    const known = this.#lots.get(channel);
    if (known !== undefined) return known;
    const lots: Lot[] = [];
    this.#lots.set(channel, lots);
    return lots;
  }

  #count(channel: number, bytes: number): void {
    this.#queuedBytes.set(channel, this.queuedBytes(channel) + bytes);
  }
}

/** The first chunks of a batch, or those behind them. */
export function partOf(batch: Batch, from: number, to = batch.chunks.length): Batch {
  const { block, part, chunks, bytes } = batch;
  return { block, part, chunks: chunks.slice(from, to), bytes: bytes.slice(from, to) };
}

export function bytesOf({ bytes }: Batch): number {
  return bytes.reduce((sum, each) => sum + each, 0);
}
