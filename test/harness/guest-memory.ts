import { assert, must } from "../../base/assert.ts";
import { KIB, MIB } from "../../base/units.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import { Prng } from "../prng.ts";

/** Several blocks, one of an odd number of pages and one that ends within a chunk. */
export const SMALL_GUEST: readonly BlockAnnouncement[] = [
  { name: "ram", sizeBytes: 8 * MIB, pageBytes: 4 * KIB },
  { name: "rom", sizeBytes: 33 * 4 * KIB, pageBytes: 4 * KIB },
  { name: "video", sizeBytes: 2 * MIB + 4 * KIB, pageBytes: 4 * KIB },
];

/** Blocks of shared memory that reads as zero. */
export function allocate(
  shape: readonly BlockAnnouncement[],
  options: { pristine?: boolean } = {},
): Block[] {
  return shape.map((block) => ({
    ...block,
    ...options,
    place: { kind: "shared", buffer: new SharedArrayBuffer(block.sizeBytes) },
  }));
}

/** The memory itself, of a block that is in a SharedArrayBuffer. */
export function bytesOf(block: Block): Uint8Array {
  assert(block.place.kind === "shared", "a block of this harness is in shared memory");
  return new Uint8Array(block.place.buffer, 0, block.sizeBytes);
}

/** Content as guests have it: every third page or so is zero, others repeat, some are random. */
export function fillBlocks(blocks: readonly Block[], seed: number): void {
  const prng = new Prng(seed);
  const random = new Uint8Array(64 * KIB);
  prng.bytes(random);
  const pageBytes = 4 * KIB;
  for (const block of blocks) {
    const bytes = bytesOf(block);
    for (let at = 0; at < bytes.length; at += pageBytes) {
      const page = bytes.subarray(at, at + pageBytes);
      const kind = prng.below(3);
      if (kind === 1) page.fill(1 + prng.below(255));
      if (kind === 2) {
        const from = prng.below(random.length - pageBytes);
        page.set(random.subarray(from, from + pageBytes));
      }
    }
  }
}

/** The first byte in which two guests differ, in words, or null when they are the same. */
export function difference(left: readonly Block[], right: readonly Block[]): string | null {
  if (left.length !== right.length) return `${left.length} blocks and ${right.length}`;
  for (const block of left) {
    const other = right.find(({ name }) => name === block.name);
    if (other === undefined) return `block "${block.name}" is on one side only`;
    const [ours, theirs] = [bytesOf(block), bytesOf(other)];
    if (Buffer.compare(ours, theirs) === 0) continue;
    const at = ours.findIndex((byte, index) => byte !== theirs[index]);
    return `block "${block.name}" differs at byte ${at}: ${ours[at]} and ${theirs[at]}`;
  }
  return null;
}

export function blockNamed(blocks: readonly Block[], name: string): Block {
  return must(
    blocks.find((block) => block.name === name),
    "the guest has a block of that name",
  );
}
