import { KIB } from "../base/units.ts";
import type { RamRegion } from "../workers/ram.ts";

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
