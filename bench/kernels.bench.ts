import { Bench } from "tinybench";
import { assert, must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { loadKernels } from "../workers/kernels/kernels.ts";

const PAGE_BYTES = 4 * KIB;

/** Fits the second-level cache of one core, so that the scan itself is measured. */
const CACHED_BYTES = 512 * KIB;
/** What a worker takes at once: a chunk. */
const CHUNK_BYTES = 2 * MIB;
/** Far more than any cache of this decade, so that the copy comes from memory. */
const GUEST_BYTES = 256 * MIB;
/** Behind the largest range of pages. */
const FLAGS_AT = CHUNK_BYTES;

/** One task: what it runs over, its goal where it has one, and a proof of its work. */
interface Measure {
  readonly name: string;
  readonly bytes: number;
  readonly goalGbps?: number;
  readonly wanted: number;
  work(): number;
}

/** Reports how fast the kernels are, in bytes of pages looked at or moved. */
export async function run(report: (line: string) => void): Promise<void> {
  for (const measure of measures()) {
    const bench = new Bench({ time: 500, warmupTime: 250 });
    let proof = -1;
    bench.add(measure.name, () => {
      proof = measure.work();
    });
    const [task] = await bench.run();
    const result = must(task, "a bench with one task gives one").result;
    assert(result.state === "completed", "a kernel does not throw");
    assert(proof === measure.wanted, "a bench does the work it is named after");

    const gbps = measure.bytes / result.latency.p50 / 1e6;
    const goal = measure.goalGbps === undefined ? "" : `  goal ${measure.goalGbps}`;
    report(`${measure.name.padEnd(52)} ${gbps.toFixed(1).padStart(6)} GB/s${goal}`);
  }
}

function* measures(): Generator<Measure> {
  const memory = new WebAssembly.Memory({ initial: (CHUNK_BYTES + 64 * KIB) / (64 * KIB) });
  const kernels = loadKernels(memory);
  const target = new Uint8Array(memory.buffer, 0, CHUNK_BYTES);
  const flags = new Uint8Array(memory.buffer, FLAGS_AT, CHUNK_BYTES / PAGE_BYTES);
  const cachedPages = CACHED_BYTES / PAGE_BYTES;

  // Memory that was never written is one page of the kernel's, again and again: write it once.
  target.fill(1).fill(0);

  // Sixteen scans in one timing, so that the timer costs nothing.
  const scanCached = () => {
    let zeros = 0;
    for (let i = 0; i < 16; i += 1) zeros += kernels.scanZero(0, PAGE_BYTES, cachedPages, FLAGS_AT);
    return zeros;
  };
  yield {
    name: "scanZero, 512 KiB of zero pages in cache",
    bytes: 16 * CACHED_BYTES,
    goalGbps: 60,
    wanted: 16 * cachedPages,
    work: scanCached,
  };

  target.fill(1);
  yield {
    name: "scanZero, 512 KiB of pages that are not zero",
    bytes: 16 * CACHED_BYTES,
    wanted: 0,
    work: scanCached,
  };

  flags.fill(0).fill(1, 0, 1);
  yield {
    name: "moveRaw, 2 MiB down by one page",
    bytes: CHUNK_BYTES,
    wanted: flags.length - 1,
    work: () => kernels.moveRaw(0, PAGE_BYTES, flags.length, FLAGS_AT),
  };

  for (let page = 0; page < flags.length; page += 1) flags[page] = page % 2;
  yield {
    name: "moveRaw, every other page of 2 MiB",
    bytes: CHUNK_BYTES / 2,
    wanted: flags.length / 2,
    work: () => kernels.moveRaw(0, PAGE_BYTES, flags.length, FLAGS_AT),
  };

  for (const [where, guestBytes] of [
    ["in cache", 4 * CHUNK_BYTES],
    ["in memory", GUEST_BYTES],
  ] as const) {
    const guest = new Uint8Array(new SharedArrayBuffer(guestBytes));
    // Written once: memory that never was is one page of the kernel's, which stays in cache.
    guest.fill(1).fill(0);
    let offset = 0;
    yield {
      name: `copy of 2 MiB shared ${where}, then scanZero`,
      bytes: CHUNK_BYTES,
      goalGbps: 12,
      wanted: flags.length,
      work() {
        target.set(guest.subarray(offset, offset + CHUNK_BYTES));
        offset = (offset + CHUNK_BYTES) % guestBytes;
        return kernels.scanZero(0, PAGE_BYTES, flags.length, FLAGS_AT);
      },
    };
  }
}

if (import.meta.main) await run((line) => process.stdout.write(`${line}\n`));
