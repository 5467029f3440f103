import { mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import type { ScanLog } from "../engine/dirty-log.ts";
import { mappedSpans, presenceOf } from "../engine/presence.ts";
import type { Report } from "../engine/statistics.ts";
import { popcount } from "../workers/dirty-words.ts";
import { markMapped } from "../workers/page-map.ts";
import { Workbench } from "../workers/workbench.ts";
import { MappedFile, missingForMaps } from "./harness/mapped-file.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";

const PAGE_BYTES = 4096;
const PAGES = 4000;
const ROWS = 600;

/** Nobody has this number: the system gives out smaller ones. */
const NOBODY = 2 ** 22 + 1;

const missing = missingForMaps();
const isMissing = missing !== null;
if (isMissing) process.stderr.write(`PRESENCE IS NOT TESTED: ${missing}\n`);

test("the mappings of a file are found by what it is, wherever they lie and whatever they show", () => {
  const maps = [
    "7f0000000000-7f0000010000 rw-s 00000000 08:1a 77 /dev/shm/ram",
    "7f1000000000-7f1000004000 r--s 00008000 08:1a 77 /dev/shm/ram (deleted)",
    "7f2000000000-7f2000010000 rw-p 00000000 08:1a 77 /dev/shm/ram",
    "7f3000000000-7f3000010000 rw-s 00000000 08:1b 77 /dev/shm/ram",
    "7f4000000000-7f4000010000 rw-s 00000000 08:1a 78 /dev/shm/ram",
    "7f5000000000-7f5000002000 rw-s 00002000 08:1a 77 /dev/shm/a name with spaces",
    "7f6000000000-7f6000010000 rw-p 00000000 00:00 0",
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
    "",
  ].join("\n");
  const file = { device: 0x81an, inode: 77n };
  expect(mappedSpans(maps, file, { offset: 0x4000, sizeBytes: 0x6000 })).toEqual([
    { address: 0x7f0000004000, firstPage: 0, pages: 6 },
    { address: 0x7f1000000000, firstPage: 4, pages: 2 },
  ]);
  expect(mappedSpans(maps, file, { offset: 0, sizeBytes: 0x4000 })).toEqual([
    { address: 0x7f0000000000, firstPage: 0, pages: 4 },
    { address: 0x7f5000000000, firstPage: 2, pages: 2 },
  ]);
  expect(mappedSpans(maps, file, { offset: 0x10000, sizeBytes: 0x1000 })).toEqual([]);
});

test("a device is the same number in `maps` and in `stat`, also a large one", () => {
  const maps = "7f0000000000-7f0000001000 rw-s 00000000 1234:56789 5 /ram";
  const device = (0x1n << 44n) | (0x234n << 8n) | 0x89n | (0x567n << 20n);
  const span = { offset: 0, sizeBytes: 4096 };
  expect(mappedSpans(maps, { device, inode: 5n }, span)).toHaveLength(1);
});

test("nothing is told of a file on a disk, of shared memory, of a process that is not there", async () => {
  const folder = mkdtempSync(join(tmpdir(), "multifd-presence-"));
  const path = join(folder, "ram");
  writeFileSync(path, "");
  truncateSync(path, 64 * KIB);
  const block = { name: "ram", sizeBytes: 64 * KIB, pageBytes: PAGE_BYTES };
  const place = { kind: "file", path, offset: 0 } as const;
  expect(await presenceOf({ ...block, place }, [NOBODY])).toBe(null);
  const buffer = new SharedArrayBuffer(64 * KIB);
  expect(await presenceOf({ ...block, place: { kind: "shared", buffer } }, [process.pid])).toBe(
    null,
  );
  const gone = { ...place, path: `${path}.gone` };
  expect(await presenceOf({ ...block, place: gone }, [process.pid])).toBe(null);
  rmSync(folder, { recursive: true });
});

test("where a page map cannot be read all pages count as mapped", () => {
  const span = {
    mapped: new Int32Array(4),
    firstWord: 1,
    words: 3,
    pageBytes: PAGE_BYTES,
    pageCount: 100,
  };
  const regions = [{ pid: NOBODY, address: 0x1000, firstPage: 0, pages: 100 }];
  expect(markMapped(span, regions, new Workbench()).pages).toBe(-1);
  expect([...span.mapped]).toEqual([0, -1, -1, 0b1111]);
});

for (const pageBytes of [4 * KIB, 16 * KIB, 64 * KIB]) {
  test.skipIf(isMissing)(
    `pages of ${pageBytes} that a process read are mapped, and no others`,
    async () => {
      using file = new MappedFile({ pages: PAGES, rows: ROWS });
      file.readRows(100);
      const presence = must(
        await presenceOf(file.block, [process.pid]),
        "this process can look at itself",
      );
      expect(presence.regions.length).toBeGreaterThan(0);
      const pageCount = (PAGES * PAGE_BYTES) / pageBytes;
      const words = Math.ceil(pageCount / 32);
      const mapped = new Int32Array(words).fill(-1);
      const span = { mapped, firstWord: 0, words, pageBytes, pageCount };
      // A region that is named twice counts once.
      const { pages: count } = markMapped(
        span,
        [...presence.regions, ...presence.regions],
        new Workbench(),
      );
      expect(count).toBeGreaterThanOrEqual(100);
      expect(count).toBeLessThan(file.contentPages);
      const pages = mapped.reduce((sum, word) => sum + popcount(word), 0);
      expect(pages).toBeGreaterThanOrEqual((count * PAGE_BYTES) / pageBytes);
      expect(pages).toBeLessThanOrEqual(count);
      const lastContent = Math.ceil((file.contentPages * PAGE_BYTES) / pageBytes);
      for (let word = Math.ceil(lastContent / 32); word < words; word += 1) {
        expect(mapped[word]).toBe(0);
      }
    },
  );
}

/** Moves the file as a guest that is scanned; `write` is what it does until it has come to rest. */
async function moved(
  file: MappedFile,
  { presence, write = () => {} }: { presence?: ScanLog["presence"]; write?: () => void },
): Promise<Report> {
  const source = new RecordingSource({ seed: 1, blocks: [file.block], dirtyLog: "scan" });
  const log: ScanLog = { kind: "scan", block: "ram", ...(presence && { presence }) };
  source.startDirtyLog = async () => [log];
  source.onPause = write;
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination, out: { downtimeLimitMs: 2000 } });
  const arrived = must(destination.blocks?.[0], "it arrived");
  if (arrived.place.kind !== "shared") throw new Error("it arrives in shared memory");
  expect(Buffer.compare(Buffer.from(arrived.place.buffer), file.read())).toBe(0);
  return must(outcome.source.report, "it moved");
}

function scannedPages({ channels }: Report): number {
  return channels.reduce((sum, { scan }) => sum + scan.readBytes, 0) / PAGE_BYTES;
}

/** All of it first, then what is in use with every scan, and a little for the page maps. */
const LOOK_PAGES = (2 * PAGES * 8) / PAGE_BYTES;

test.skipIf(isMissing)("memory that nobody used is read once", async () => {
  using file = new MappedFile({ pages: PAGES, rows: ROWS });
  file.readRows(100);
  const report = await moved(file, { presence: { pids: [process.pid] } });
  expect(report.rounds.map(({ dirtyPages }) => dirtyPages)).toEqual([PAGES, 0, 0]);
  expect(scannedPages(report)).toBeLessThanOrEqual(PAGES + 2 * file.contentPages + LOOK_PAGES);
});

test.skipIf(isMissing)(
  "what is written behind the back of who maps the memory is found all the same",
  async () => {
    using file = new MappedFile({ pages: PAGES, rows: ROWS });
    file.readRows(100);
    const write = (): void => file.writePage(PAGES - 3, new Uint8Array([1, 2, 3]));
    const report = await moved(file, { presence: { pids: [process.pid] }, write });
    expect(report.rounds.at(-1)).toMatchObject({ dirtyPages: 1, sentPages: 1 });
    expect(scannedPages(report)).toBeGreaterThan(2 * PAGES);
  },
);

test.skipIf(isMissing)(
  "a page that is zero but held makes no difference but that all is read",
  async () => {
    using file = new MappedFile({ pages: PAGES, rows: ROWS });
    const write = (): void => file.writePage(PAGES - 3, new Uint8Array(8));
    const report = await moved(file, { presence: { pids: [process.pid] }, write });
    expect(report.rounds.at(-1)).toMatchObject({ dirtyPages: 0, sentPages: 0 });
    expect(scannedPages(report)).toBeGreaterThan(2 * PAGES);
  },
);

test.skipIf(isMissing)(
  "content that became a hole is sent as the zeros that it reads as",
  async () => {
    using file = new MappedFile({ pages: PAGES, rows: ROWS });
    file.readRows(100);
    const dropped = 40;
    const write = (): void => {
      file.setSize((file.contentPages - dropped) * PAGE_BYTES);
      file.setSize(PAGES * PAGE_BYTES);
    };
    const report = await moved(file, { presence: { pids: [process.pid] }, write });
    expect(report.rounds.at(-1)).toMatchObject({ dirtyPages: dropped, sentPages: dropped });
    expect(scannedPages(report)).toBeLessThan(2 * PAGES);
  },
);

for (const [who, pids] of [
  ["nobody", []],
  ["a process that is not there", [NOBODY]],
  ["a process that maps the file, and one that is not there", [process.pid, NOBODY]],
  ["a process that does not map it", [process.ppid]],
] as const) {
  test.skipIf(isMissing)(
    `with ${who} named as its user all memory is read, and nothing fails`,
    async () => {
      using file = new MappedFile({ pages: PAGES, rows: ROWS });
      file.readRows(100);
      const write = (): void => file.writePage(7, new Uint8Array([9]));
      const report = await moved(file, { presence: { pids }, write });
      expect(report.rounds.at(-1)).toMatchObject({ dirtyPages: 1 });
      expect(statSync(file.path).size).toBe(PAGES * PAGE_BYTES);
    },
  );
}
