import { readFileSync } from "node:fs";
import { readFile, stat, statfs } from "node:fs/promises";
import { within } from "../base/clock.ts";
import { BASE_PAGE_BYTES } from "../workers/page-map.ts";
import type { FileIdentity, MappedRegion } from "../workers/protocol.ts";
import type { Block } from "./block.ts";

/**
 * Which memory of a file nobody ever used, told without reading it.
 *
 * The facts (Linux). A page of a shared mapping that a process read or wrote is in its page table,
 * and `/proc/PID/pagemap` says so. That a page is *not* there proves nothing about its content: it
 * may have been used and left the page table again (swap, reclaim, `madvise`, a huge page that was
 * put together of small ones), it may have been punched out of the file (a balloon), and another
 * process, `write(2)` or an earlier migration may have filled it. So what is missing is never
 * skipped for that reason alone. But a file in memory (tmpfs, hugetlbfs) counts what it holds, in
 * `st_blocks`, swapped pages included, and a page that it does not hold reads as zero. While nobody
 * writes: mapped pages are held; pages that were read just now and are not zero are held; are these
 * together as many as the file holds, then it holds no others, and every other page is zero, as it
 * was when it was last sent. Are they fewer, the others must be read.
 *
 * So a scan reads what is mapped and what was sent with content, then counts. While the guest runs
 * the count may be off by what it does meanwhile, and a change be missed; the last scan counts
 * while it is paused.
 */
export interface FilePresence {
  readonly file: FileIdentity;
  readonly regions: readonly MappedRegion[];
}

const FILES_IN_MEMORY: readonly number[] = [0x0102_1994 /* tmpfs */, 0x9584_58f6 /* hugetlbfs */];

/** `st_blocks` counts in these. */
const BLOCK_BYTES = 512;

/** The kernel answers at once; what it does not tell in this time is read instead. */
const ANSWER_MS = 1000;

/** Where the processes have the block. Null where its memory cannot be told from its page maps. */
export async function presenceOf(
  { place, sizeBytes }: Block,
  pids: readonly number[],
): Promise<FilePresence | null> {
  if (place.kind !== "file" || place.offset % BASE_PAGE_BYTES !== 0) return null;
  if (basePageBytes() !== BASE_PAGE_BYTES) return null;
  try {
    const asked = Promise.all([
      stat(place.path, { bigint: true }),
      statfs(place.path),
      Promise.all(pids.map((pid) => readFile(`/proc/${pid}/maps`, "utf8"))),
    ]);
    const [{ dev, ino }, { type }, maps] = await answered(asked);
    if (!FILES_IN_MEMORY.includes(type)) return null;
    const file = { device: dev, inode: ino };
    const span = { offset: place.offset, sizeBytes };
    const regions = pids.flatMap((pid, index) =>
      mappedSpans(maps[index] ?? "", file, span).map((region) => ({ pid, ...region })),
    );
    return { file, regions };
  } catch {
    return null; // No such process, or not for us to look into: everything is read.
  }
}

/** Pages of 4 KiB that the file holds, in memory or swapped out; null where it cannot be told. */
export async function heldPages({ place }: Block, file: FileIdentity): Promise<number | null> {
  if (place.kind !== "file") return null;
  try {
    const { dev, ino, blocks } = await answered(stat(place.path, { bigint: true }));
    if (dev !== file.device || ino !== file.inode) return null;
    return Number((blocks * BigInt(BLOCK_BYTES)) / BigInt(BASE_PAGE_BYTES));
  } catch {
    return null;
  }
}

async function answered<T>(asked: Promise<T>): Promise<T> {
  return await within(ANSWER_MS, asked, () => new Error("the kernel does not answer"));
}

/** A line of `/proc/PID/maps`: addresses, access, offset, device, inode. */
const MAPPING = /^([0-9a-f]+)-([0-9a-f]+) ...(.) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)/;

/**
 * The parts of a span of a file that a process maps shared, from the text of its `maps`. Pages are
 * counted from the start of the span. A private mapping has copies that the file does not.
 */
export function mappedSpans(
  maps: string,
  file: FileIdentity,
  span: { readonly offset: number; readonly sizeBytes: number },
): Omit<MappedRegion, "pid">[] {
  return maps.split("\n").flatMap((line) => {
    const [, start, end, sharing, offset, major, minor, inode] = MAPPING.exec(line) ?? [];
    if (sharing !== "s" || BigInt(inode ?? 0) !== file.inode) return [];
    if (deviceOf(hex(major), hex(minor)) !== file.device) return [];
    const fileStart = Math.max(hex(offset), span.offset);
    const fileEnd = Math.min(hex(offset) + hex(end) - hex(start), span.offset + span.sizeBytes);
    if (fileStart >= fileEnd) return [];
    return [
      {
        address: hex(start) + fileStart - hex(offset),
        firstPage: (fileStart - span.offset) / BASE_PAGE_BYTES,
        pages: (fileEnd - fileStart) / BASE_PAGE_BYTES,
      },
    ];
  });
}

function hex(text = "0"): number {
  return Number.parseInt(text, 16);
}

/** A device as `stat` has it: 12 and 20 bits as they were once, further bits above. */
function deviceOf(major: number, minor: number): bigint {
  const [high, low] = [BigInt(major), BigInt(minor)];
  return (
    ((high & ~0xfffn) << 32n) | ((high & 0xfffn) << 8n) | ((low & ~0xffn) << 12n) | (low & 0xffn)
  );
}

const AT_PAGESZ = 6n;

/** The page that this kernel's page maps are of, from what it tells every process; 0 if unknown. */
function basePageBytes(): number {
  try {
    const bytes = readFileSync("/proc/self/auxv");
    const words = new BigUint64Array(new Uint8Array(bytes).buffer);
    const index = words.findIndex((word, at) => at % 2 === 0 && word === AT_PAGESZ);
    return index === -1 ? 0 : Number(words[index + 1]);
  } catch {
    return 0;
  }
}
