import { beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { createDirtyLog, markDirty } from "../engine/dirty-log.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { type BusyBlock, BusyGuest } from "./harness/busy-guest.ts";
import { FaultRig, warmUp } from "./harness/fault-rig.ts";
import { bytesOf, difference } from "./harness/guest-memory.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

beforeAll(warmUp);

function pagesOf({ blocks }: RecordingSource): number {
  return blocks.reduce((sum, { sizeBytes, pageBytes }) => sum + sizeBytes / pageBytes, 0);
}

test(`of a guest that writes nothing, nothing is sent twice, and it is looked at twice before it rests (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed, dirtyLog: "scan" });
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination });
  const pages = pagesOf(source);
  const rounds = must(outcome.source.report, "it moved").rounds;
  expect(rounds.map(({ dirtyPages, sentPages }) => [dirtyPages, sentPages])).toEqual([
    [pages, pages],
    [0, 0],
    [0, 0],
  ]);
  // Nothing but a fence on each of two channels.
  expect(rounds[1]?.sentBytes).toBe(rounds[2]?.sentBytes);
  expect(rounds[1]?.sentBytes).toBeLessThan(100);
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
});

test(`every round tells just the pages that changed since the one before (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed, dirtyLog: "scan" });
  const changed: number[] = [pagesOf(source)];
  let left = 6;
  const write = (count: number): void => {
    const before = source.blocks.map((block) => Buffer.from(bytesOf(block)));
    source.writePages(count);
    changed.push(
      source.blocks.reduce((sum, block, index) => {
        const [old, now] = [must(before[index], "as many"), Buffer.from(bytesOf(block))];
        let pages = 0;
        for (let at = 0; at < old.length; at += block.pageBytes) {
          if (old.compare(now, at, at + block.pageBytes, at, at + block.pageBytes) !== 0)
            pages += 1;
        }
        return sum + pages;
      }, 0),
    );
  };
  source.onLook = () => {
    left -= 1;
    write(left > 0 ? 400 : 5);
  };
  // The last scan finds what was written before the guest came to rest.
  source.onPause = () => {};
  const destination = new RecordingDestination();
  const out = { downtimeLimitMs: 1, maxRounds: 6, nonConvergence: "switch-over" } as const;
  const outcome = await migratePair({ source, destination, out });
  const rounds = must(outcome.source.report, "it moved").rounds;
  expect(rounds.map(({ dirtyPages }) => dirtyPages)).toEqual(changed);
  expect(rounds.map(({ sentPages }) => sentPages)).toEqual(changed);
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
});

test(`a block may be scanned and have a log, beside others that have either (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed, dirtyLog: "scan" });
  const [ram, rom, video] = source.blocks.map((block) => ({
    block,
    log: createDirtyLog(block.name, block),
    scan: { kind: "scan", block: block.name } as const,
  }));
  if (!ram || !rom || !video) throw new Error("the guest has three blocks");
  source.startDirtyLog = async () => [ram.log, ram.scan, rom.scan, video.log];
  source.onPause = () => {
    const wanted = [
      [ram, 3, false],
      [ram, 4, true],
      [rom, 32, false],
      [video, 512, true],
    ] as const;
    for (const [{ block, log }, page, isMarked] of wanted) {
      const at = page * block.pageBytes + 100;
      bytesOf(block)[at] = (bytesOf(block)[at] ?? 0) + 1;
      if (isMarked) markDirty(log, page);
    }
    markDirty(ram.log, 5); // Marked although it is as it was.
  };
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination });
  expect(outcome.source.report?.rounds.at(-1)).toMatchObject({ dirtyPages: 5, sentPages: 5 });
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
});

test(`every channel scans, and together they read all memory once a round (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed, dirtyLog: "scan" });
  source.onLook = () => source.writePages(400);
  const destination = new RecordingDestination();
  const chunkBytes = 128 * KIB;
  const outcome = await migratePair({
    source,
    destination,
    out: {
      channels: 3,
      chunkBytes,
      downtimeLimitMs: 1,
      maxRounds: 6,
      nonConvergence: "switch-over",
    },
    in: { chunkBytes },
  });
  expect(outcome.source.failure).toBe(null);
  const { channels, guestBytes, rounds } = must(outcome.source.report, "it moved");
  const bulk = channels.filter(({ lane }) => lane === "bulk");
  expect(bulk).toHaveLength(3);
  for (const { scan } of bulk) expect(scan.readBytes).toBeGreaterThan(0);
  const readBytes = bulk.reduce((sum, { scan }) => sum + scan.readBytes, 0);
  expect(readBytes).toBe(rounds.length * guestBytes);
});

for (const [name, point] of [
  ["the first pages", { channel: 1, frame: "pages", nth: 3 }],
  ["the first scan", { channel: 1, frame: "fence", nth: 3 }],
  ["a later round", { channel: 0, frame: "round", nth: 2 }],
  ["the last scan", { channel: 1, frame: "end" }],
] as const) {
  test(`a link that is cut in ${name} loses nothing, and the next attempt succeeds (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed, "scan");
    {
      await using relay = await Relay.start();
      relay.at({ ...point, where: "middle" }, "cut link");
      const { source } = await rig.fails({ relay });
      expect(source.failure?.code).toBe("CHANNEL_LOST");
    }
    await rig.succeeds();
  });
}

test(`a cancel while the memory is scanned loses nothing, and the next attempt succeeds (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed, "scan");
  const abort = new AbortController();
  rig.source.onLook = () => {
    rig.source.writePages(300);
    abort.abort();
  };
  const out = { downtimeLimitMs: 1 };
  const { source } = await rig.fails({ out: { ...out, signal: abort.signal } });
  expect(source.failure?.code).toBe("CANCELLED");
  rig.source.onLook = () => rig.source.writePages(3);
  await rig.succeeds();
});

/** Page sizes that travel as they are, and one that does not. */
const SHAPES: readonly (readonly BusyBlock[])[] = [
  [{ name: "ram", kind: "file", sizeBytes: 16 * MIB, pageBytes: 4 * KIB }],
  [
    { name: "ram", kind: "file", sizeBytes: 6 * MIB, pageBytes: 2 * MIB },
    { name: "rom", kind: "shared", sizeBytes: 33 * 4 * KIB, pageBytes: 4 * KIB },
  ],
  [
    { name: "one", kind: "shared", sizeBytes: 5 * MIB + 16 * KIB, pageBytes: 16 * KIB },
    { name: "two", kind: "file", sizeBytes: 7 * MIB + 64 * KIB, pageBytes: 64 * KIB },
  ],
];

const WAYS: readonly ParameterOptions[] = [
  { channels: 1 },
  { channels: 3, checksum: true },
  { channels: 2, xbzrle: true, xbzrleCacheBytes: 8 * MIB },
  { channels: 2, compression: "auto", checksum: true },
  { channels: 2, compression: "zstd", xbzrle: true, xbzrleCacheBytes: 256 * KIB },
];

for (const [shape, blocks] of SHAPES.entries()) {
  for (const way of WAYS) {
    const how = Object.entries(way).map(([key, value]) => `${key} ${value}`);
    test(`a guest that writes at full speed arrives exactly: shape ${shape}, ${how.join(", ")} (SEED=${seed})`, async () => {
      await using source = new BusyGuest(blocks, seed);
      await source.start();
      const { checksum = false } = way;
      const outcome = await migratePair({
        source,
        destination: source.destination(),
        out: { ...way, downtimeLimitMs: 1, maxRounds: 4, nonConvergence: "switch-over" },
        in: { checksum },
      });
      expect(outcome.source.failure).toBe(null);
      expect(source.difference()).toBe(null);
      const rounds = must(outcome.source.report, "it moved").rounds;
      expect(rounds.length).toBeGreaterThanOrEqual(3);
      for (const { dirtyPages, sentPages } of rounds) expect(sentPages).toBe(dirtyPages);
    });
  }
}

test(`a first round that is hurried leaves what it did not send to the last scan (SEED=${seed})`, async () => {
  const shape = [{ name: "ram", kind: "file", sizeBytes: 64 * MIB, pageBytes: 4 * KIB }] as const;
  await using source = new BusyGuest(shape, seed);
  await source.start();
  const outcome = await migratePair({
    source,
    destination: source.destination(),
    out: { channels: 2, timeoutMs: 50, downtimeLimitMs: 1, nonConvergence: "switch-over" },
  });
  expect(outcome.source.failure).toBe(null);
  expect(source.difference()).toBe(null);
});

test(`a guest that does not converge goes on where it is, and writes (SEED=${seed})`, async () => {
  const shape = [{ name: "ram", kind: "shared", sizeBytes: 8 * MIB, pageBytes: 4 * KIB }] as const;
  await using source = new BusyGuest(shape, seed);
  await source.start();
  const outcome = await migratePair({
    source,
    destination: source.destination(),
    out: { downtimeLimitMs: 1, maxRounds: 3 },
  });
  expect(outcome.source.failure).toMatchObject({ code: "NOT_CONVERGING", facts: { rounds: 3 } });
  const { writes } = source;
  while (source.writes === writes) await new Promise((resolve) => setImmediate(resolve));
});
