import { GIB, KIB } from "../base/units.ts";
import { BLOCKS_MAX, NAME_BYTES_MAX } from "../channels/frame.ts";
import { BLOCK_PAGES_MAX } from "../channels/messages.ts";
import type { RamPlace, RamRegion } from "../workers/ram.ts";

/** One named region of guest RAM. */
export interface Block extends RamRegion {
  /** The unit in which the host tells of dirty memory: a power of two, 4 KiB to 1 GiB. */
  readonly pageBytes: number;
  /**
   * At the destination: true when no byte of it was ever written, so that it reads as zero and zero
   * pages need not be touched. When in doubt, false: a zero page then ends up zero all the same.
   */
  readonly pristine?: boolean;
}

/** What travels about a block: enough for the destination to provide the same. */
export interface BlockAnnouncement {
  readonly name: string;
  readonly sizeBytes: number;
  readonly pageBytes: number;
}

/** The largest page that travels and is encoded as one piece; see `wirePageBytes`. */
export const WIRE_PAGE_BYTES_MAX = 64 * KIB;

/** The page in which a block with larger pages travels. */
const WIRE_PAGE_BYTES_OF_HUGE = 4 * KIB;

/**
 * The guest page that the wire speaks, the bitmap counts and the report names. Blocks with pages
 * beyond 64 KiB (hugetlbfs, say) travel in 4 KiB pages, so that one written byte in a gigabyte page
 * does not need a gigabyte buffer, and so that all channels share the work.
 */
export function wirePageBytes(pageBytes: number): number {
  return pageBytes <= WIRE_PAGE_BYTES_MAX ? pageBytes : WIRE_PAGE_BYTES_OF_HUGE;
}

/** A block's pages and chunks, from which bitmaps, workers and the wire take their numbers. */
export interface Geometry {
  /** Wire page. */
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesPerChunk: number;
}

/** A word of the bitmap belongs to one chunk, so a chunk has at least as many pages. */
const CHUNK_PAGES_MIN = 32;

export function geometryOf(block: BlockAnnouncement, chunkBytes: number): Geometry {
  const pageBytes = wirePageBytes(block.pageBytes);
  return {
    pageBytes,
    pageCount: block.sizeBytes / pageBytes,
    pagesPerChunk: Math.max(CHUNK_PAGES_MIN, chunkBytes / pageBytes),
  };
}

const PAGE_BYTES_MIN = 4 * KIB;
const PAGE_BYTES_MAX = 1 * GIB;

/** Everything about a host's blocks that the engine cannot work with, each in a sentence. */
export function blockProblems(blocks: readonly Block[]): string[] {
  const problems: string[] = [];
  if (blocks.length === 0) problems.push("a guest needs at least one block of RAM");
  if (blocks.length > BLOCKS_MAX) problems.push(`a guest has at most ${BLOCKS_MAX} blocks`);
  const seen = new Set<string>();
  for (const { name, sizeBytes, pageBytes, place } of blocks) {
    if (seen.has(name)) problems.push(`block "${name}" is there twice`);
    seen.add(name);
    const nameBytes = new TextEncoder().encode(name).length;
    if (nameBytes === 0 || nameBytes > NAME_BYTES_MAX) {
      problems.push(`block "${name}" needs a name of 1 to ${NAME_BYTES_MAX} bytes`);
    }
    if (!String(name).isWellFormed()) {
      problems.push(`block "${name}" needs a name that UTF-8 can carry`);
    }
    const isPowerOfTwo = typeof pageBytes === "number" && Number.isInteger(Math.log2(pageBytes));
    if (!isPowerOfTwo || pageBytes < PAGE_BYTES_MIN || pageBytes > PAGE_BYTES_MAX) {
      problems.push(
        `block "${name}" needs a page size of 4 KiB to 1 GiB: it is ${pageBytes} bytes`,
      );
    } else if (!(Number.isSafeInteger(sizeBytes) && sizeBytes > 0) || sizeBytes % pageBytes !== 0) {
      problems.push(
        `block "${name}" must be whole pages of ${pageBytes} bytes: it is ${sizeBytes} bytes`,
      );
    } else if (sizeBytes / wirePageBytes(pageBytes) > BLOCK_PAGES_MAX) {
      problems.push(`block "${name}" has more than ${BLOCK_PAGES_MAX} pages`);
    }
    const problem = placeProblem(place, sizeBytes);
    if (problem !== null) problems.push(`block "${name}" ${problem}`);
  }
  return problems;
}

/** Hosts without types may give anything, and a thread would get a copy of what is not shared. */
function placeProblem(place: Partial<RamPlace> | undefined, sizeBytes: number): string | null {
  switch (place?.kind) {
    case "shared":
      if (!(place.buffer instanceof SharedArrayBuffer)) return "needs a SharedArrayBuffer";
      return place.buffer.byteLength < sizeBytes ? "is larger than its SharedArrayBuffer" : null;
    case "file":
      if (typeof place.path !== "string" || place.path === "") return "needs the path of its file";
      return Number.isSafeInteger(place.offset) && Number(place.offset) >= 0
        ? null
        : "needs the offset of its first byte in its file";
    default:
      return 'needs a place of kind "shared" or "file"';
  }
}
