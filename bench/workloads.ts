import { createCipheriv } from "node:crypto";
import { assert } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { loadChecksum } from "../channels/checksum.ts";
import type { Block } from "../engine/block.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";
import type { GuestShape, VcpuShape } from "../hosts/memory-guest/shape.ts";
import { TEXT_BYTES, textOf } from "./text.ts";

/** What guests are filled with. Memory is really written in each case, zeros too. */
export type Content = "random" | "text" | "zero";

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
  if (content === "text") {
    const text = textOf({ bytes: Math.min(TEXT_BYTES, memory.length), seed });
    for (let at = 0; at < memory.length; at += text.length) {
      memory.set(text.subarray(0, memory.length - at), at);
    }
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

/** A stopped guest at the start of `buffer`: nobody writes, so one round sends it all. */
export function stillGuest(buffer: SharedArrayBuffer, bytes = buffer.byteLength): SourceHost {
  return {
    blocks: [blockOver(buffer, bytes)],
    startDirtyLog: async () => [],
    stopDirtyLog: async () => {},
    pause: async () => {},
    resume: async () => {},
    saveDevices: async () => [],
  };
}

/** Takes a guest into memory that is there already: whatever it holds is overwritten. */
export function waitingMemory(buffer: SharedArrayBuffer, pristine: boolean): DestinationHost {
  return {
    async prepare(announced) {
      const bytes = announced[0]?.sizeBytes ?? 0;
      assert(bytes <= buffer.byteLength, "there is room for the guest");
      return [{ ...blockOver(buffer, bytes), pristine }];
    },
    loadDevices: async () => {},
    resume: async () => {},
    discard: async () => {},
  };
}

function blockOver(buffer: SharedArrayBuffer, sizeBytes: number): Block {
  const place = { kind: "shared", buffer } as const;
  return { name: BLOCK_NAME, sizeBytes, pageBytes: PAGE_BYTES, place };
}

/** A guest that works while it moves: threads that keep rewriting parts of it at a given rate. */
export function busyShape(size: {
  guestBytes: number;
  vcpus: number;
  workingSetBytes: number;
  dirtyBytesPerSecond: number;
  pattern?: VcpuShape["pattern"];
  zeroShare?: number;
}): GuestShape {
  const { pattern = "hot", zeroShare = 1 / 3 } = size;
  const pageCount = Math.floor(size.workingSetBytes / size.vcpus / PAGE_BYTES);
  const otherShare = (1 - zeroShare) / 2;
  return {
    blocks: [{ name: BLOCK_NAME, sizeBytes: size.guestBytes, pageBytes: PAGE_BYTES }],
    seed: 1,
    content: { zero: zeroShare, text: otherShare, random: otherShare },
    vcpus: Array.from({ length: size.vcpus }, (_, index) => ({
      block: BLOCK_NAME,
      firstPage: index * pageCount,
      pageCount,
      pattern,
      rateBytesPerSecond: Math.round(size.dirtyBytesPerSecond / size.vcpus),
      changedBytes: 64,
    })),
  };
}
