import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import { assert } from "../../base/assert.ts";
import { MIB } from "../../base/units.ts";

const PAGE_BYTES = 4096;
/** The unit of `stat`'s `blocks`, whatever the file system's own. */
const STAT_BLOCK_BYTES = 512;
const ZERO_PAGE = Buffer.alloc(PAGE_BYTES);

/** What is in a RAM file, found by reading all of it. */
export interface RamSurvey {
  readonly bytes: number;
  readonly sha256: string;
  /** Bytes in pages that hold anything but zero. */
  readonly nonzeroBytes: number;
  /** What the file takes from its file system: less than `bytes` where it has holes. */
  readonly allocatedBytes: number;
}

/** Reads a whole RAM file, whose size must be a multiple of a page. */
export async function surveyRam(path: string): Promise<RamSurvey> {
  const file = await open(path, "r");
  try {
    const { size, blocks } = await file.stat();
    assert(size % PAGE_BYTES === 0, "a RAM file is made of pages");
    const content = await readContent(file);
    assert(content.bytes === size, "a surveyed file does not change its size");
    return { ...content, allocatedBytes: blocks * STAT_BLOCK_BYTES };
  } finally {
    await file.close();
  }
}

async function readContent(file: FileHandle): Promise<Omit<RamSurvey, "allocatedBytes">> {
  const hash = createHash("sha256");
  const piece = Buffer.alloc(MIB);
  let bytes = 0;
  let nonzeroPages = 0;
  while (true) {
    const { bytesRead } = await file.read(piece, 0, MIB, bytes);
    if (bytesRead === 0) break;
    hash.update(piece.subarray(0, bytesRead));
    nonzeroPages += countNonzero(piece.subarray(0, bytesRead));
    bytes += bytesRead;
  }
  return { bytes, sha256: hash.digest("hex"), nonzeroBytes: nonzeroPages * PAGE_BYTES };
}

/** Compares as bytes (memcmp), so no bit pattern is taken for zero. */
function countNonzero(pages: Buffer): number {
  let count = 0;
  for (let at = 0; at < pages.length; at += PAGE_BYTES) {
    if (!pages.subarray(at, at + PAGE_BYTES).equals(ZERO_PAGE)) count += 1;
  }
  return count;
}
