import { closeSync, existsSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { formatBytes, GIB, MIB, TIB } from "../base/units.ts";
import { migrateIn } from "../engine/destination.ts";
import type { SourceHost } from "../engine/host.ts";
import { migrateOut } from "../engine/source.ts";
import type { RamPlace } from "../workers/ram.ts";
import { atExit } from "./at-exit.ts";
import { type Benchmark, CannotMeasure, gbps, listed, median } from "./measure.ts";
import { fill, PAGE_BYTES, waitingMemory } from "./workloads.ts";

const SMOKE = { guestBytes: 8 * MIB, channels: 2, scans: 2 };

const GOAL_GBPS = 3;

/** Where files are in memory; elsewhere a scan would tell of the disk, or of its cache. */
const MEMORY_FOLDER = "/dev/shm";

/**
 * Rounds over a guest of random pages that did not change since the first one: all of it is read
 * and hashed, nothing is sent. Per core means bytes of guest memory by the processor time of this
 * whole process, both ends of the migration with all of their threads.
 */
export const scan: Benchmark<typeof SMOKE> = {
  name: "scan",
  about: "a scan of memory that did not change, in bytes of guest memory by processor time",
  smoke: SMOKE,
  real: { guestBytes: GIB, channels: 2, scans: 7 },

  async run(report, { guestBytes, channels, scans }) {
    const content = new Uint8Array(new SharedArrayBuffer(guestBytes));
    fill(content, "random", 1);
    using file = new ScannedFile(content);
    const places: readonly [string, RamPlace][] = [
      ["shared", { kind: "shared", buffer: content.buffer as SharedArrayBuffer }],
      ["file", file.place],
    ];
    for (const [where, place] of places) {
      const times = await scanOften(place, { guestBytes, channels, scans });
      const perCore = times.map(({ cpuMs }) => gbps(guestBytes, cpuMs));
      const byClock = times.map(({ elapsedMs }) => gbps(guestBytes, elapsedMs));
      const goal = { atLeast: GOAL_GBPS };
      const detail = listed(perCore);
      report({ name: `${where}, per core`, value: median(perCore), unit: "GB/s", goal, detail });
      const clock = { value: median(byClock), unit: "GB/s", detail: listed(byClock) };
      report({ name: `${where}, by the clock`, ...clock });
    }
  },
};

/** The guest's memory in a file. */
class ScannedFile implements Disposable {
  readonly place: RamPlace;
  readonly #folder = mkdtempSync(
    join(existsSync(MEMORY_FOLDER) ? MEMORY_FOLDER : tmpdir(), "multifd-scan-"),
  );
  readonly #watch: Disposable;

  constructor(content: Uint8Array) {
    const path = join(this.#folder, "ram");
    this.place = { kind: "file", path, offset: 0 };
    this.#watch = atExit(this.#remove);
    try {
      writeAll(path, content);
    } catch (error) {
      this[Symbol.dispose]();
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
      throw new CannotMeasure(`${this.#folder} has no room for ${formatBytes(content.length)}`);
    }
  }

  readonly #remove = (): void => rmSync(this.#folder, { recursive: true, force: true });

  [Symbol.dispose](): void {
    this.#watch[Symbol.dispose]();
    this.#remove();
  }
}

function writeAll(path: string, content: Uint8Array): void {
  const fd = openSync(path, "w");
  try {
    for (let at = 0; at < content.length; ) {
      at += writeSync(fd, content, at, Math.min(MIB, content.length - at), at);
    }
  } finally {
    closeSync(fd);
  }
}

interface ScanTimes {
  readonly cpuMs: number;
  readonly elapsedMs: number;
}

/** Migrates within this process, with so many scans before the guest may rest. */
async function scanOften(
  place: RamPlace,
  size: { guestBytes: number; channels: number; scans: number },
): Promise<ScanTimes[]> {
  const { guestBytes, channels, scans } = size;
  const times: ScanTimes[] = [];
  let before: { cpu: NodeJS.CpuUsage; atMs: number } | null = null;
  const host: SourceHost = {
    blocks: [{ name: "ram", sizeBytes: guestBytes, pageBytes: PAGE_BYTES, place }],
    // Asked for after each round. With devices that no pause has room for there is another one.
    get deviceBytes() {
      if (before !== null) {
        const cpu = process.cpuUsage(before.cpu);
        const cpuMs = (cpu.user + cpu.system) / 1000;
        times.push({ cpuMs, elapsedMs: nowMs() - before.atMs });
      }
      before = { cpu: process.cpuUsage(), atMs: nowMs() };
      return times.length < scans ? TIB : 0;
    },
    startDirtyLog: async () => [{ kind: "scan", block: "ram" }],
    stopDirtyLog: async () => {},
    pause: async () => {},
    resume: async () => {},
    saveDevices: async () => [],
  };
  const target = new SharedArrayBuffer(guestBytes);
  const listening = Promise.withResolvers<string>();
  const arrival = migrateIn(waitingMemory(target, true), "tcp:127.0.0.1:0", {
    onListening: listening.resolve,
  });
  arrival.catch(listening.reject);
  const options = { channels, downtimeLimitMs: 60_000 };
  const report = await migrateOut(host, await listening.promise, options);
  await arrival;
  const readBytes = report.channels.reduce((sum, channel) => sum + channel.scan.readBytes, 0);
  assert(readBytes === (scans + 2) * guestBytes, "every round read all of the guest");
  assert(
    report.rounds.slice(1).every(({ sentPages }) => sentPages === 0),
    "and found nothing to send",
  );
  return times;
}
