import { copyFileSync, readFileSync, rmSync } from "node:fs";
import { assert } from "../../base/assert.ts";
import { KIB } from "../../base/units.ts";
import type { PumpFigures } from "../pump.ts";
import { MEMORY_KINDS, type MemoryKind } from "./enclosure.ts";
import { pumpFile } from "./file-pump.ts";
import { GUESTS, type GuestName } from "./guests.ts";
import { moveWithMultifd, type OwnFigures, type OwnMove, type SourceThreads } from "./multifd.ts";
import type { Turns } from "./program.ts";
import { moveWithQemu } from "./qemu.ts";
import { expectSameMemory } from "./same-memory.ts";
import type { Compression, Sample } from "./sample.ts";
import { warm } from "./warm.ts";

export interface Plan extends Turns {
  readonly guests: readonly GuestName[];
  readonly memories: readonly MemoryKind[];
  readonly compressions: readonly Compression[];
  /** Absent: as large as the guest is meant to be. */
  readonly sizeBytes?: number;
}

/** The same memory, moved turn and turn about. */
export interface Comparison {
  readonly guest: GuestName;
  readonly memory: MemoryKind;
  readonly compression: Compression;
  readonly threads: SourceThreads;
  readonly sizeBytes: number;
  readonly qemu: readonly Sample[];
  readonly multifd: readonly Sample[];
  readonly own: readonly OwnFigures[];
  /** The same bytes moved by the same calls, and nothing else; see `pumpFile`. Not with auto. */
  readonly pump: readonly PumpFigures[];
}

/** Compares everything that is planned, inside an enclosure, and tells each result when it is there. */
export async function compareAll(plan: Plan, tell: (found: Comparison) => void): Promise<void> {
  for (const name of plan.guests) {
    const guest = GUESTS[name];
    const sizeBytes = plan.sizeBytes ?? guest.sizeBytes;
    const folder = MEMORY_KINDS.small.folder;
    const madePath = `${folder}/${name}.ram`;
    await guest.make({ path: madePath, sizeBytes, folder });
    for (const memory of plan.memories) {
      const sourcePath = `${MEMORY_KINDS[memory].folder}/source.ram`;
      const hugeBefore = hugeBytes();
      copyFileSync(madePath, sourcePath);
      // Where the kernel gives none, the comparison would not be the one that it says it is.
      const isHuge = memory !== "huge" || hugeBytes() - hugeBefore >= sizeBytes / 2;
      assert(isHuge, "memory mounted with huge pages has them");
      for (const compression of plan.compressions) {
        tell(await compare({ ...plan, guest: name, memory, compression, sizeBytes, sourcePath }));
      }
      rmSync(sourcePath);
    }
    rmSync(madePath);
  }
}

interface Case extends Turns {
  readonly guest: GuestName;
  readonly memory: MemoryKind;
  readonly compression: Compression;
  readonly sizeBytes: number;
  readonly sourcePath: string;
}

async function compare(given: Case): Promise<Comparison> {
  const { guest, memory, compression, sizeBytes, sourcePath, channels, pairs, warmups, threads } =
    given;
  const destinationPath = `${MEMORY_KINDS[memory].folder}/destination.ram`;
  const move: OwnMove = { threads, sourcePath, destinationPath, sizeBytes, channels, compression };
  const found = {
    qemu: [] as Sample[],
    multifd: [] as Sample[],
    own: [] as OwnFigures[],
    pump: [] as PumpFigures[],
  };
  const folder = MEMORY_KINDS.small.folder;
  const isReady = (): void => warm(`${MEMORY_KINDS[memory].folder}/warm`, sizeBytes);
  const runs = {
    async qemu(isCounted: boolean) {
      const plain = {
        ...move,
        compression: compression === "auto" ? "none" : compression,
      } as const;
      const sample = await moveWithQemu(plain, folder, isReady);
      if (isCounted) found.qemu.push(sample);
    },
    async multifd(isCounted: boolean) {
      const { sample, own } = await moveWithMultifd(move, folder, isReady);
      if (!isCounted) return;
      found.multifd.push(sample);
      found.own.push(own);
    },
  };
  for (let pair = -warmups; pair < pairs; pair += 1) {
    // Who comes second may find things warmer.
    const order = pair % 2 === 0 ? (["qemu", "multifd"] as const) : (["multifd", "qemu"] as const);
    for (const engine of order) {
      await runs[engine](pair >= 0);
      expectSameMemory(sourcePath, destinationPath);
      rmSync(destinationPath);
    }
    if (compression === "auto") continue;
    const pumped = await pumpFile({ ...move, compression }, isReady);
    expectSameMemory(sourcePath, destinationPath);
    rmSync(destinationPath);
    if (pair >= 0) found.pump.push(pumped);
  }
  return { guest, memory, compression, threads, sizeBytes, ...found };
}

/** Of the whole machine, so that only what it grows by is ours. */
function hugeBytes(): number {
  const kib = /^ShmemHugePages:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))?.[1];
  return Number(kib) * KIB;
}
