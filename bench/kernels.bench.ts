import { assert } from "../base/assert.ts";
import { copyShared } from "../base/shared-copy.ts";
import { KIB, MIB } from "../base/units.ts";
import { loadKernels } from "../workers/kernels/kernels.ts";
import type { Benchmark } from "./measure.ts";
import { type Task, timeTasks } from "./tasks.ts";

const PAGE_BYTES = 4 * KIB;

/** Fits the second-level cache of one core, so that the scan itself is measured. */
const CACHED_BYTES = 512 * KIB;
/** What a worker takes at once: a chunk. */
const CHUNK_BYTES = 2 * MIB;
/** Behind the largest range of pages. */
const FLAGS_AT = CHUNK_BYTES;

/** Repeats of what takes microseconds, in one timing. */
const TIMES = 16;

const SMOKE = { timeMs: 1, guestBytes: 8 * MIB };

/** How fast the kernels are, in bytes of pages looked at or moved. */
export const kernels: Benchmark<typeof SMOKE> = {
  name: "kernels",
  about: "the zero scan and what goes with it, on one core, in bytes of pages",
  smoke: SMOKE,
  // The guest is far more than any cache of this decade, so that the copy comes from memory.
  real: { timeMs: 500, guestBytes: 256 * MIB },

  async run(report, { timeMs, guestBytes }) {
    await timeTasks(kernelTasks(guestBytes), timeMs, report);
  },
};

function* kernelTasks(guestBytes: number): Generator<Task> {
  const memory = new WebAssembly.Memory({ initial: (CHUNK_BYTES + 64 * KIB) / (64 * KIB) });
  const { scanZero, moveRaw } = loadKernels(memory);
  const target = new Uint8Array(memory.buffer, 0, CHUNK_BYTES);
  const flags = new Uint8Array(memory.buffer, FLAGS_AT, CHUNK_BYTES / PAGE_BYTES);
  const cachedPages = CACHED_BYTES / PAGE_BYTES;

  // Memory that was never written is one page of the kernel's, again and again: write it once.
  target.fill(1).fill(0);

  // Many scans in one timing, so that the timer costs nothing.
  const scanCached = (wanted: number) => () => {
    let zeros = 0;
    for (let i = 0; i < TIMES; i += 1) zeros += scanZero(0, PAGE_BYTES, cachedPages, FLAGS_AT);
    assert(zeros === wanted, "every page is looked at");
  };
  const move = (wanted: number) => () => {
    assert(moveRaw(0, PAGE_BYTES, flags.length, FLAGS_AT) === wanted, "pages that stay are moved");
  };
  yield {
    name: "scanZero, 512 KiB of zero pages in cache",
    bytes: CACHED_BYTES,
    times: TIMES,
    goal: { atLeast: 60 },
    work: scanCached(TIMES * cachedPages),
  };

  target.fill(1);
  yield {
    name: "scanZero, 512 KiB of pages that are not zero",
    bytes: CACHED_BYTES,
    times: TIMES,
    work: scanCached(0),
  };

  flags.fill(0).fill(1, 0, 1);
  yield {
    name: "moveRaw, 2 MiB down by one page",
    bytes: CHUNK_BYTES,
    work: move(flags.length - 1),
  };

  for (let page = 0; page < flags.length; page += 1) flags[page] = page % 2;
  yield {
    name: "moveRaw, every other page of 2 MiB",
    bytes: CHUNK_BYTES / 2,
    work: move(flags.length / 2),
  };

  for (const [where, bytes] of [
    ["in cache", 4 * CHUNK_BYTES],
    ["in memory", guestBytes],
  ] as const) {
    const guest = new SharedArrayBuffer(bytes);
    // Written once: memory that never was is one page of the kernel's, which stays in cache.
    new Uint8Array(guest).fill(1).fill(0);
    let offset = 0;
    yield {
      name: `copy of 2 MiB shared ${where}, then scanZero`,
      bytes: CHUNK_BYTES,
      goal: { atLeast: 12 },
      work() {
        copyShared(target, guest, offset);
        offset = (offset + CHUNK_BYTES) % bytes;
        const zeros = scanZero(0, PAGE_BYTES, flags.length, FLAGS_AT);
        assert(zeros === flags.length, "a copy of zeros is zero");
      },
    };
  }
}
