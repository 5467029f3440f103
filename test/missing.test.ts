import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { DirtyBitmap } from "../engine/dirty-bitmap.ts";
import { createDirtyLog, markDirty } from "../engine/dirty-log.ts";
import { MISSING } from "../workers/fault-door.ts";
import { bytesOf, difference } from "./harness/guest-memory.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

test("a bitmap is widened to whole stretches where any page of one is dirty", () => {
  const bitmap = new DirtyBitmap({ pageCount: 640, pageBytes: 4 * KIB, pagesPerChunk: 32 });
  expect(bitmap.widen(128)).toBe(0);
  for (const page of [0, 128 + 77, 3 * 128 - 1, 640 - 128]) {
    const log = createDirtyLog("ram", { sizeBytes: 640 * 4 * KIB, pageBytes: 4 * KIB });
    markDirty(log, page);
    bitmap.sync([log]);
  }
  expect(bitmap.widen(128)).toBe(4 * 127);
  const dirty = Array.from({ length: 5 }, (_, at) => bitmap.words.words.slice(4 * at, 4 * at + 4));
  expect(dirty.map((words) => [...new Set(words)])).toEqual([[-1], [-1], [-1], [0], [-1]]);
  expect(Array.from({ length: 20 }, (_, chunk) => bitmap.dirtyCountOf(chunk))).toEqual(
    Array.from({ length: 20 }, (_, chunk) => (chunk >= 12 && chunk < 16 ? 0 : 32)),
  );
  expect(bitmap.nextDirtyChunk(12)).toBe(16);
  expect(bitmap.widen(128)).toBe(0);
});

test(`a huge page of which a part is dirty is missing as a whole, and all of it comes (SEED=${seed})`, async () => {
  const shape = { name: "ram", sizeBytes: 8 * MIB, pageBytes: 2 * MIB };
  const source = new RecordingSource({ seed, shape: [shape] });
  const [block] = source.blocks;
  // Somebody tells of smaller pages than the guest's.
  const log = createDirtyLog("ram", { ...shape, pageBytes: 4 * KIB });
  const logs = source.startDirtyLog.bind(source);
  source.startDirtyLog = async () => [...(await logs()), log];
  source.onPause = () => {
    bytesOf(must(block, "it has one block"))[700 * 4 * KIB] = 1;
    markDirty(log, 700);
  };
  const destination = new RecordingDestination();
  const missing: number[] = [];
  destination.onFaults = ({ words, blocks }) => {
    missing.push(Atomics.load(words, MISSING));
    for (const word of blocks[0]?.present ?? []) missing.push(~word);
  };
  const out = { channels: 1, postcopy: "after-rounds" } as const;
  const outcome = await migratePair({ source, destination, out });
  expect([outcome.source.failure, outcome.destination.failure]).toEqual([null, null]);
  const none = Array<number>(16).fill(0);
  expect(missing).toEqual([512, ...none, ...none.map(() => -1), ...none, ...none]);
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
});
