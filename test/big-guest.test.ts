import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { GIB, KIB, MIB } from "../base/units.ts";
import type { Block } from "../engine/block.ts";
import { allocate, bytesOf } from "./harness/guest-memory.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const PAGE_BYTES = 4 * KIB;
/** Beyond what 32 bits count in bytes; `npm run soak` has twice that, where signed words end. */
const SIZE_GIB = Number(process.env["GUEST_GIB"] ?? 4);
const SIZE_BYTES = SIZE_GIB * GIB + PAGE_BYTES;
const SHAPE = [{ name: "ram", sizeBytes: SIZE_BYTES, pageBytes: PAGE_BYTES }];

/** Pages on both sides of where a number of 32 bits ends, and at random. */
function interestingPages(random: Prng): number[] {
  const pageCount = SIZE_BYTES / PAGE_BYTES;
  const edges = [2 * GIB, 4 * GIB, SIZE_GIB * GIB].map((bytes) => bytes / PAGE_BYTES);
  const pages = [0, ...edges.flatMap((edge) => [edge - 1, edge]), pageCount - 1];
  while (pages.length < 60) pages.push(random.below(pageCount));
  return pages;
}

function pageOf(block: Block, page: number): Uint8Array {
  return bytesOf(block).subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
}

/** Kernels without a page of zeros that all share give memory of its own to each page at a read. */
const LIMIT_MS = 240_000;

/** Has the kernel provide whatever a reader of all memory is given. Returns the sum of what it saw. */
function readAll(block: Block): number {
  const bytes = bytesOf(block);
  let sum = 0;
  for (let at = 0; at < bytes.length; at += PAGE_BYTES) sum += bytes[at] as number;
  return sum;
}

/** Memory of this process that is really there. */
function residentBytes(): number {
  const status = readFileSync("/proc/self/status", "utf8");
  return Number(must(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1], "the kernel tells it")) * KIB;
}

test(`a guest of ${SIZE_GIB} GiB and a page arrives, and its zero pages take no memory (SEED=${seed})`, {
  timeout: LIMIT_MS,
}, async () => {
  const random = new Prng(seed);
  const source = new RecordingSource({ seed, blocks: allocate(SHAPE) });
  const block = must(source.blocks[0], "the guest has one block");
  const pages = interestingPages(random);
  for (const page of pages) random.bytes(pageOf(block, page));
  source.onLook = () => source.writePages(2);
  source.onPause = () => source.writePages(5);
  const destination = new RecordingDestination();

  // What the source reads is there before: what comes in addition is the destination's.
  expect(readAll(block)).toBeGreaterThan(0);
  const before = residentBytes();
  const { source: ours, destination: theirs } = await migratePair({
    source,
    destination,
    out: { channels: 2 },
  });
  const grownBytes = residentBytes() - before;

  expect([ours.failure, theirs.failure]).toEqual([null, null]);
  const arrived = must(destination.blocks?.[0], "memory was prepared");
  for (const page of pages) {
    expect(Buffer.compare(pageOf(arrived, page), pageOf(block, page)), `page ${page}`).toBe(0);
  }
  for (let sample = 0; sample < 2000; sample += 1) {
    const page = random.below(SIZE_BYTES / PAGE_BYTES);
    expect(Buffer.compare(pageOf(arrived, page), pageOf(block, page)), `page ${page}`).toBe(0);
  }
  const report = must(ours.report, "it completed");
  expect(report.guestBytes).toBe(SIZE_BYTES);
  expect(report.rounds[0]?.dirtyPages).toBe(SIZE_BYTES / PAGE_BYTES);
  expect(report.pages.raw).toBeLessThan(2 * pages.length);
  expect(report.pages.zero + report.pages.raw).toBeGreaterThanOrEqual(SIZE_BYTES / PAGE_BYTES);
  expect(report.pages.untouched).toBeGreaterThanOrEqual(SIZE_BYTES / PAGE_BYTES - pages.length);
  // Threads and their buffers are there as well; the guest's zero pages would be GiBs.
  expect(grownBytes).toBeLessThan(512 * MIB);
});
