import { assert } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { Prng } from "../test/prng.ts";
import { DELTA_ROOM_BYTES, loadKernels, PAGE_FLAG } from "../workers/kernels/kernels.ts";
import { type Benchmark, type Goal, gbps, type Report } from "./measure.ts";
import { fill, PAGE_BYTES } from "./workloads.ts";

const WASM_PAGE_BYTES = 64 * KIB;

/** Bytes of a page that differ from its base, at random positions, and the rate to encode them. */
const CHANGES: readonly { count: number; goal: Goal }[] = [
  { count: 10, goal: { atLeast: 15 } },
  { count: 1000, goal: { atLeast: 1 } },
];

type DeltaParameters = {
  /** Pages that are worked on again and again: twice as much should fit a core's second cache. */
  readonly cachedBytes: number;
  /** Pages that come from memory, as do their bases: far more than any cache. */
  readonly memoryBytes: number;
  /** Pages are worked on until they are so many, as short timings are rough. */
  readonly timedBytes: number;
  /** The fastest of so many counts: other work on the machine only makes them slower. */
  readonly timings: number;
};

export const delta: Benchmark<DeltaParameters> = {
  name: "delta",
  about: "kernels that compare pages with cached versions, on one core, in bytes of pages",
  smoke: { cachedBytes: 64 * KIB, memoryBytes: MIB, timedBytes: MIB, timings: 2 },
  real: { cachedBytes: 256 * KIB, memoryBytes: 64 * MIB, timedBytes: 8 * MIB, timings: 50 },
  run,
};

/** Only rates in cache have goals: memory has a speed of its own. */
async function run(report: Report, parameters: DeltaParameters): Promise<void> {
  const { cachedBytes, memoryBytes, timedBytes, timings } = parameters;
  for (const [where, bytes] of [
    ["cache", cachedBytes],
    ["memory", memoryBytes],
  ] as const) {
    const bench = new Workpiece(bytes);
    const measure = (
      what: string,
      work: () => void,
      more: { goal?: Goal; detail?: string } = {},
    ) => {
      const repeats = Math.ceil(timedBytes / bytes);
      const value = gbps(repeats * bytes, fastestMs({ timings, repeats }, work));
      const { goal, ...rest } = more;
      const judged = goal !== undefined && where === "cache" ? { goal } : {};
      report({ name: `${what}, ${where}`, value, unit: "GB/s", ...rest, ...judged });
      return value;
    };

    for (const { count, goal } of CHANGES) {
      bench.change(count);
      const detail = `${bench.encode(PAGE_FLAG.delta)} bytes a page`;
      const encode = measure(`encode ${count} changes`, () => bench.encode(PAGE_FLAG.delta), {
        goal,
        detail,
      });
      const decode = measure(`decode ${count} changes`, () => bench.decode());
      bench.expectDecoded();
      const name = `decode / encode ${count} changes, ${where}`;
      report({ name, value: decode / encode, unit: "", goal: { atLeast: 1 } });
    }
    bench.overwrite();
    measure("encode overwritten pages", () => bench.encode(PAGE_FLAG.overflow));
    measure("classify overwritten pages", () => bench.classify(PAGE_FLAG.changed));
    bench.change(0);
    measure("classify unchanged pages", () => bench.classify(PAGE_FLAG.unchanged));
    bench.clear();
    measure("classify zero pages", () => bench.classify(PAGE_FLAG.zero));
  }
}

function fastestMs(size: { timings: number; repeats: number }, work: () => void): number {
  const times = Array.from({ length: size.timings }, () => {
    const start = performance.now();
    for (let repeat = 0; repeat < size.repeats; repeat += 1) work();
    return performance.now() - start;
  });
  return Math.min(...times);
}

/** Pages, their bases and room for their deltas, in one memory. */
class Workpiece {
  readonly #pageCount: number;
  readonly #kernels: ReturnType<typeof loadKernels>;
  readonly #random = new Prng(1);
  readonly #pages: Uint8Array;
  readonly #bases: Uint8Array;
  readonly #flags: Uint8Array;
  readonly #table: Uint8Array;
  readonly #lengths: Uint8Array;
  readonly #room: Uint8Array;
  #deltaBytes = 0;

  constructor(bytes: number) {
    this.#pageCount = bytes / PAGE_BYTES;
    assert(Number.isInteger(this.#pageCount), "a bench works on whole pages");
    const parts = [bytes, bytes, ...[1, 4, 2].map((size) => size * this.#pageCount)];
    parts.push(bytes + DELTA_ROOM_BYTES);
    // The first page stays free: no base is at 0.
    const total = WASM_PAGE_BYTES + parts.reduce((sum, part) => sum + part);
    const memory = new WebAssembly.Memory({ initial: Math.ceil(total / WASM_PAGE_BYTES) });
    let at = WASM_PAGE_BYTES;
    const take = (size: number): Uint8Array => {
      at += size;
      return new Uint8Array(memory.buffer, at - size, size);
    };
    this.#pages = take(bytes);
    this.#bases = take(bytes);
    this.#flags = take(this.#pageCount);
    this.#table = take(4 * this.#pageCount);
    this.#lengths = take(2 * this.#pageCount);
    this.#room = take(bytes + DELTA_ROOM_BYTES);
    this.#kernels = loadKernels(memory);

    const table = new DataView(memory.buffer, this.#table.byteOffset);
    for (let page = 0; page < this.#pageCount; page += 1) {
      table.setUint32(4 * page, this.#bases.byteOffset + page * PAGE_BYTES, true);
    }
  }

  /** Random bases, and pages that differ from them in up to `count` bytes. */
  change(count: number): void {
    fill(this.#bases, "random", 1);
    this.#pages.set(this.#bases);
    for (let first = 0; first < this.#pages.length; first += PAGE_BYTES) {
      for (let change = 0; change < count; change += 1) {
        const at = first + this.#random.below(PAGE_BYTES);
        this.#pages[at] = (this.#pages[at] ?? 0) + 1;
      }
    }
  }

  /** Random bases, and random pages that have nothing to do with them. */
  overwrite(): void {
    fill(this.#bases, "random", 1);
    fill(this.#pages, "random", 2);
  }

  /** Zero pages whose bases are random. */
  clear(): void {
    fill(this.#bases, "random", 1);
    this.#pages.fill(0);
  }

  /** Encodes all pages, each of which must end with `flag`; returns the mean bytes of a delta. */
  encode(flag: number): number {
    this.#flags.fill(PAGE_FLAG.changed);
    this.#deltaBytes = this.#kernels.encodeDelta(
      this.#pages.byteOffset,
      PAGE_BYTES,
      this.#pageCount,
      this.#table.byteOffset,
      this.#flags.byteOffset,
      this.#room.byteOffset,
      this.#room.length,
      this.#lengths.byteOffset,
    );
    this.#expectFlags(flag);
    return Math.round(this.#deltaBytes / this.#pageCount);
  }

  /** Turns the bases into the pages that were encoded; again and again gives the same. */
  decode(): void {
    const verdict = this.#kernels.decodeDeltas(
      this.#room.byteOffset,
      this.#deltaBytes,
      this.#lengths.byteOffset,
      this.#pageCount,
      this.#bases.byteOffset,
    );
    assert(verdict === 0, "what was encoded can be decoded");
  }

  expectDecoded(): void {
    assert(Buffer.compare(this.#bases, this.#pages) === 0, "decoding gives the pages");
  }

  classify(flag: number): void {
    this.#kernels.classify(
      this.#pages.byteOffset,
      PAGE_BYTES,
      this.#pageCount,
      this.#table.byteOffset,
      this.#flags.byteOffset,
    );
    this.#expectFlags(flag);
  }

  /** A few are enough as proof, and cost nothing beside the work on the pages. */
  #expectFlags(flag: number): void {
    for (const page of [0, this.#pageCount >> 1, this.#pageCount - 1]) {
      assert(this.#flags[page] === flag, "a bench does the work that it is named after");
    }
  }
}
