import { assert } from "../base/assert.ts";
import { formatBytes, GIB, KIB, MIB, TIB } from "../base/units.ts";
import { DirtyBitmap } from "../engine/dirty-bitmap.ts";
import { createDirtyLog, type DirtyLog, markDirty } from "../engine/dirty-log.ts";
import { takeWords, undoWords } from "../workers/dirty-words.ts";
import type { Benchmark } from "./measure.ts";
import { type Task, timeTasks } from "./tasks.ts";

const PAGE_BYTES = 4 * KIB;
const PAGES_PER_CHUNK = (2 * MIB) / PAGE_BYTES;
const SPARSE_PAGES = 100;

const SMOKE = { timeMs: 1, denseBytes: 64 * MIB, sparseBytes: 64 * GIB };

/** The promise for the walk of a terabyte: 2 ms. */
const SPARSE_WALK_US = 2000;

/**
 * What the bitmap costs the coordinator (sync, walk, count) and a worker (take, undo). Every run is
 * checked to have done its work; no threads contend, so these are floors.
 */
export const bitmap: Benchmark<typeof SMOKE> = {
  name: "bitmap",
  about: "dirty pages: sync, walk, count, take and undo",
  smoke: SMOKE,
  real: { timeMs: 500, denseBytes: 8 * GIB, sparseBytes: TIB },

  async run(report, { timeMs, denseBytes, sparseBytes }) {
    await timeTasks(denseTasks(denseBytes), timeMs, report);
    await timeTasks(sparseTasks(sparseBytes), timeMs, report);
    await timeTasks(chunkTasks(denseBytes), timeMs, report);
  },
};

function* denseTasks(sizeBytes: number): Generator<Task> {
  const { bitmap, log } = blockOf(sizeBytes);
  const size = formatBytes(sizeBytes);
  const soil = (): void => {
    bitmap.words.words.fill(0);
    log.words.fill(-1);
    log.summary.fill(-1);
  };
  yield {
    name: `sync ${size}, every page dirty`,
    prepare: soil,
    work: () => assert(bitmap.sync([log]) === bitmap.pageCount, "every page moves"),
  };
  yield {
    name: `walk ${size}, every chunk dirty`,
    prepare: () => bitmap.fill(),
    work: () => assert(walk(bitmap) === bitmap.chunkCount, "every chunk is found"),
  };
  yield {
    name: `count ${size}, every page dirty`,
    prepare: () => bitmap.fill(),
    work: () => assert(bitmap.dirtyCount() === bitmap.pageCount, "every page counts"),
  };
}

/** A few dirty pages, scattered by a fixed stride over all of the memory and over summary words. */
function* sparseTasks(sizeBytes: number): Generator<Task> {
  const { bitmap, log } = blockOf(sizeBytes);
  const size = formatBytes(sizeBytes);
  const stride = Math.floor(sizeBytes / PAGE_BYTES / SPARSE_PAGES) - 1;
  const mark = (): void => {
    for (let i = 0; i < SPARSE_PAGES; i += 1) markDirty(log, i * stride);
  };
  mark();
  bitmap.sync([log]);
  yield {
    name: `walk ${size}, ${SPARSE_PAGES} pages dirty`,
    goal: { atMost: SPARSE_WALK_US },
    work: () => assert(walk(bitmap) === SPARSE_PAGES, "every dirty chunk is found"),
  };
  yield {
    name: `count ${size}, ${SPARSE_PAGES} pages dirty`,
    work: () => assert(bitmap.dirtyCount() === SPARSE_PAGES, "every dirty page counts"),
  };
  yield {
    name: `sync ${size}, ${SPARSE_PAGES} pages dirty`,
    prepare: mark,
    work: () => assert(bitmap.sync([log]) === 0, "the pages are dirty already"),
  };
}

/** One chunk, as a worker takes it and puts it back. */
function* chunkTasks(sizeBytes: number): Generator<Task> {
  const { bitmap } = blockOf(sizeBytes);
  const taken = new Int32Array(PAGES_PER_CHUNK / 32);
  const sparse = new Int32Array(taken.length).fill(1, 0, 1);
  const dense = new Int32Array(taken.length).fill(-1);
  for (const [name, bits, pages] of [
    ["1 page", sparse, 1],
    ["512 pages", dense, PAGES_PER_CHUNK],
  ] as const) {
    yield {
      name: `undo and take a chunk of ${name}`,
      work() {
        undoWords(bitmap.words, 0, bits);
        assert(takeWords(bitmap.words, 0, taken) === pages, "a chunk is taken whole");
      },
    };
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
