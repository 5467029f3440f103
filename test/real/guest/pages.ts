import { type FileHandle, open } from "node:fs/promises";
import { MIB } from "../../../base/units.ts";

const PAGE_BYTES = 4096;
/** The third word of each page that the guest works on, as `work.c` writes it. */
const MAGIC = 0x6d75_6c74_6966_6421n;
const MAGIC_AT = 16;

/** A page of the guest's work, seen from outside. */
export interface WorkPage {
  /** Where it is in the RAM file. */
  readonly offset: number;
  readonly index: number;
  readonly sequence: number;
}

/** All pages of the guest's work in a RAM file, in the order of their indexes. */
export async function findWorkPages(ramPath: string): Promise<WorkPage[]> {
  const file = await open(ramPath, "r");
  try {
    const pages = [];
    for await (const [offset, page] of pagesOf(file)) {
      if (page.readBigUInt64LE(MAGIC_AT) !== MAGIC) continue;
      const word = (at: number) => Number(page.readBigUInt64LE(at));
      pages.push({ offset, index: word(8), sequence: word(0) });
    }
    return pages.sort((a, b) => a.index - b.index);
  } finally {
    await file.close();
  }
}

/** Replaces bytes of a running guest's memory behind its back. */
export async function meddle(ramPath: string, offset: number, bytes: Uint8Array): Promise<void> {
  const file = await open(ramPath, "r+");
  try {
    await file.write(bytes, 0, bytes.length, offset);
  } finally {
    await file.close();
  }
}

export async function readPage(ramPath: string, offset: number): Promise<Buffer> {
  const file = await open(ramPath, "r");
  try {
    const page = Buffer.alloc(PAGE_BYTES);
    await file.read(page, 0, PAGE_BYTES, offset);
    return page;
  } finally {
    await file.close();
  }
}

async function* pagesOf(file: FileHandle): AsyncGenerator<[offset: number, page: Buffer]> {
  const piece = Buffer.alloc(MIB);
  for (let at = 0; ; at += MIB) {
    const { bytesRead } = await file.read(piece, 0, MIB, at);
    if (bytesRead === 0) return;
    for (let page = 0; page < bytesRead; page += PAGE_BYTES) {
      yield [at + page, piece.subarray(page, page + PAGE_BYTES)];
    }
  }
}
