import { Bench } from "tinybench";
import { assert } from "../base/assert.ts";
import { GIB, KIB, MIB, TIB } from "../base/units.ts";
import { DirtyBitmap } from "../engine/dirty-bitmap.ts";
import { createDirtyLog, type DirtyLog, markDirty } from "../engine/dirty-log.ts";
import { takeWords, undoWords } from "../workers/dirty-words.ts";

const PAGE_BYTES = 4 * KIB;
const PAGES_PER_CHUNK = (2 * MIB) / PAGE_BYTES;
const SPARSE_PAGES = 100;
/** A fixed stride scatters the dirty pages over the terabyte, and over summary words. */
const SPARSE_STRIDE = Math.floor(TIB / PAGE_BYTES / SPARSE_PAGES) - 1;

/** Long enough for hundreds of runs of the slowest, warm-up included. */
const TASK_MS = 500;

/**
 * What the bitmap costs the coordinator (sync, walk, count) and a worker (take, undo). Every run is
 * checked to have done its work; no threads contend, so these are floors.
 */
export async function run(report: (line: string) => void): Promise<void> {
  const bench = new Bench({ time: TASK_MS, warmupTime: TASK_MS / 2, throws: true });
  addDense(bench);
  addSparse(bench);
  addTake(bench);
  await bench.run();
  for (const { name, result } of bench.tasks) {
    assert(result.state === "completed", "a bench ran");
    const { p50, p99, max } = result.latency;
    report(`bitmap ${name}: p50 ${micro(p50)} p99 ${micro(p99)} max ${micro(max)}`);
  }
}

function micro(ms: number): string {
  return ms >= 1 ? `${ms.toFixed(2)} ms` : `${(ms * 1000).toFixed(2)} us`;
}

/** 8 GiB of which every page is dirty. */
function addDense(bench: Bench): void {
  const { bitmap, log } = blockOf(8 * GIB);
  const soil = (): void => {
    bitmap.words.words.fill(0);
    log.words.fill(-1);
    log.summary.fill(-1);
  };
  bench.add(
    "sync 8 GiB, every page dirty",
    () => assert(bitmap.sync([log]) === bitmap.pageCount, "every page moves"),
    { beforeEach: soil },
  );
  bench.add(
    "walk 8 GiB, every chunk dirty",
    () => assert(walk(bitmap) === bitmap.chunkCount, "every chunk is found"),
    { beforeEach: () => bitmap.fill() },
  );
  bench.add("count 8 GiB, every page dirty", () =>
    assert(bitmap.dirtyCount() === bitmap.pageCount, "every page counts"),
  );
}

/** 1 TiB of which 100 pages are dirty: the walk's limit is 2 ms. */
function addSparse(bench: Bench): void {
  const { bitmap, log } = blockOf(TIB);
  const mark = (): void => {
    for (let i = 0; i < SPARSE_PAGES; i += 1) markDirty(log, i * SPARSE_STRIDE);
  };
  mark();
  bitmap.sync([log]);
  bench.add("walk 1 TiB, 100 pages dirty", () =>
    assert(walk(bitmap) === SPARSE_PAGES, "every dirty chunk is found"),
  );
  bench.add("count 1 TiB, 100 pages dirty", () =>
    assert(bitmap.dirtyCount() === SPARSE_PAGES, "every dirty page counts"),
  );
  bench.add(
    "sync 1 TiB, 100 pages dirty",
    () => assert(bitmap.sync([log]) === 0, "the pages are dirty already"),
    { beforeEach: mark },
  );
}

/** One chunk, as a worker takes it and puts it back. */
function addTake(bench: Bench): void {
  const { bitmap } = blockOf(8 * GIB);
  const taken = new Int32Array(PAGES_PER_CHUNK / 32);
  const sparse = new Int32Array(taken.length).fill(1, 0, 1);
  const dense = new Int32Array(taken.length).fill(-1);
  for (const [name, bits, pages] of [
    ["1 page", sparse, 1],
    ["512 pages", dense, PAGES_PER_CHUNK],
  ] as const) {
    bench.add(`undo and take a chunk of ${name}`, () => {
      undoWords(bitmap.words, 0, bits);
      assert(takeWords(bitmap.words, 0, taken) === pages, "a chunk is taken whole");
    });
  }
}

function blockOf(sizeBytes: number): { bitmap: DirtyBitmap; log: DirtyLog } {
  const pageCount = sizeBytes / PAGE_BYTES;
  return {
    bitmap: new DirtyBitmap({ pageCount, pageBytes: PAGE_BYTES, pagesPerChunk: PAGES_PER_CHUNK }),
    log: createDirtyLog("ram", { sizeBytes, pageBytes: PAGE_BYTES }),
  };
}

function walk(bitmap: DirtyBitmap): number {
  let chunks = 0;
  for (let chunk = -1; ; chunks += 1) {
    chunk = bitmap.nextDirtyChunk(chunk + 1);
    if (chunk === -1) return chunks;
  }
}

if (import.meta.main) await run((line) => void process.stdout.write(`${line}\n`));
