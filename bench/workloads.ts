import { createCipheriv } from "node:crypto";
import { assert } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { loadChecksum } from "../channels/checksum.ts";
import type { Block } from "../engine/block.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";

/** What guests are filled with. Memory is really written in each case, zeros too. */
export type Content = "random" | "zero";

export const PAGE_BYTES = 4 * KIB;

/** Memory is visited in spans of this: large enough for a fast loop, small enough for buffers. */
const SPAN_BYTES = 4 * MIB;

const BLOCK_NAME = "ram";

/** Fills all of `memory`; `seed` makes two random guests differ. */
export function fill(memory: Uint8Array, content: Content, seed: number): void {
  if (content === "zero") {
    memory.fill(0);
    return;
  }
  // A keystream repeats never, compresses never, and comes at gigabytes per second.
  const key = new Uint8Array(16);
  new DataView(key.buffer).setUint32(0, seed);
  const stream = createCipheriv("aes-128-ctr", key, new Uint8Array(16));
  const zeros = new Uint8Array(SPAN_BYTES);
  for (let at = 0; at < memory.length; at += SPAN_BYTES) {
    const bytes = Math.min(SPAN_BYTES, memory.length - at);
    memory.set(stream.update(zeros.subarray(0, bytes)), at);
  }
}

/** A checksum of all of `memory`: the proof that it arrived. */
export async function digest(memory: Uint8Array): Promise<string> {
  const checksum = await loadChecksum();
  const sums: bigint[] = [];
  for (let at = 0; at < memory.length; at += SPAN_BYTES) {
    sums.push(checksum.of(memory.subarray(at, at + SPAN_BYTES)));
  }
  return checksum.of(new Uint8Array(BigUint64Array.from(sums).buffer)).toString(16);
}

/** A stopped guest in `buffer`: nobody writes, so one round sends it all. */
export function stillGuest(buffer: SharedArrayBuffer): SourceHost {
  return {
    blocks: [blockOver(buffer)],
    startDirtyLog: async () => [],
    stopDirtyLog: async () => {},
    pause: async () => {},
    resume: async () => {},
    saveDevices: async () => [],
  };
}

/** Takes a guest into memory that is there already: whatever it holds is overwritten. */
export function waitingMemory(buffer: SharedArrayBuffer, pristine: boolean): DestinationHost {
  const block = { ...blockOver(buffer), pristine };
  return {
    async prepare(announced) {
      assert(announced[0]?.sizeBytes === block.sizeBytes, "both ends hold guests of one size");
      return [block];
    },
    loadDevices: async () => {},
    resume: async () => {},
    discard: async () => {},
  };
}

function blockOver(buffer: SharedArrayBuffer): Block {
  const place = { kind: "shared", buffer } as const;
  return { name: BLOCK_NAME, sizeBytes: buffer.byteLength, pageBytes: PAGE_BYTES, place };
}

/** A guest that works while it moves: threads that keep rewriting parts of it at a given rate. */
export function busyShape(size: {
  guestBytes: number;
  vcpus: number;
  workingSetBytes: number;
  dirtyBytesPerSecond: number;
}): GuestShape {
  const pageCount = Math.floor(size.workingSetBytes / size.vcpus / PAGE_BYTES);
  const third = 1 / 3;
  return {
    blocks: [{ name: BLOCK_NAME, sizeBytes: size.guestBytes, pageBytes: PAGE_BYTES }],
    seed: 1,
    content: { zero: third, text: third, random: third },
    vcpus: Array.from({ length: size.vcpus }, (_, index) => ({
      block: BLOCK_NAME,
      firstPage: index * pageCount,
      pageCount,
      pattern: "hot",
      rateBytesPerSecond: Math.round(size.dirtyBytesPerSecond / size.vcpus),
      changedBytes: 64,
    })),
  };
}
