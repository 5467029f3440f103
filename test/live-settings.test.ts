import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { GIB, KIB, MIB } from "../base/units.ts";
import { LiveParameters } from "../engine/live-parameters.ts";
import { applySettings, cacheBytesOf } from "../engine/live-settings.ts";
import { type ParameterOptions, resolveParameters } from "../engine/parameters.ts";
import type { Report } from "../engine/statistics.ts";
import { codecNamed } from "../workers/codecs/list.ts";
import { createControl, readCodecSettings } from "../workers/control.ts";
import { CACHE_BYTES_MAX } from "../workers/workbench.ts";
import { allocate, bytesOf, difference } from "./harness/guest-memory.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

function settingsOf(given: ParameterOptions) {
  const control = createControl(1);
  applySettings(control, resolveParameters(given));
  return { ...readCodecSettings(control), limit: Number(control.pacing[1]) };
}

const ZSTD = codecNamed("zstd")?.number;
const DEFLATE = codecNamed("deflate")?.number;

test("parameters become what the threads look at, frame by frame", () => {
  const none = { codec: 0, isAuto: false, cpuShare: 0, limit: 0 };
  expect(settingsOf({})).toMatchObject(none);
  expect(settingsOf({ maxBandwidthBytesPerSecond: 5 * MIB })).toMatchObject({ limit: 5 * MIB });
  const zstd: ParameterOptions = { compression: "zstd", zstdLevel: 7 };
  expect(settingsOf(zstd)).toMatchObject({ codec: ZSTD, level: 7, isAuto: false });
  const deflate: ParameterOptions = { compression: "deflate", deflateLevel: 4 };
  expect(settingsOf(deflate)).toMatchObject({ codec: DEFLATE, level: 4, isAuto: false });
  const auto: ParameterOptions = { compression: "auto", cpuLimitCores: 2, channels: 8 };
  expect(settingsOf({ ...auto, zstdLevel: 3, autoExtraTimePercent: 80 })).toMatchObject({
    codec: ZSTD,
    level: 3,
    isAuto: true,
    cpuShare: 0.25,
    extraTime: 0.8,
  });
});

test("each channel gets its part of the cache, and no more than it can use", () => {
  const cacheOf = (given: ParameterOptions, shardBytes: number) =>
    cacheBytesOf(resolveParameters(given), shardBytes);
  expect(cacheOf({}, 1 * GIB)).toBe(0);
  expect(cacheOf({ compression: "zstd" }, 1 * GIB)).toBe(0);
  expect(cacheOf({ xbzrle: true }, 1 * GIB)).toBe(16 * MIB);
  expect(cacheOf({ compression: "auto" }, 1 * GIB)).toBe(16 * MIB);
  expect(cacheOf({ xbzrle: true, channels: 3 }, 1 * GIB)).toBe(Math.floor((64 * MIB) / 3));
  expect(cacheOf({ xbzrle: true }, 1 * MIB)).toBe(1 * MIB);
  const huge = { xbzrle: true, xbzrleCacheBytes: 1024 * GIB };
  expect(cacheOf(huge, 256 * GIB)).toBe(CACHE_BYTES_MAX);
  expect(cacheOf({ xbzrle: true, xbzrleCacheBytes: 64 * KIB, channels: 64 }, 1 * GIB)).toBe(1024);
});

const SHAPE = [{ name: "ram", sizeBytes: 4 * MIB, pageBytes: 4 * KIB }];
const PAGES = (4 * MIB) / (4 * KIB);

/** A guest full of text that writes some pages whenever a round has ended, a few times. */
function makeSource(writes: number): RecordingSource {
  const blocks = allocate(SHAPE);
  for (const block of blocks) {
    const bytes = bytesOf(block);
    for (let at = 0; at < bytes.length; at += 1) bytes[at] = 97 + ((at * 7 + (at >> 9)) % 23);
  }
  const source = new RecordingSource({ seed, blocks });
  let left = writes;
  source.onLook = () => {
    if (left > 0) source.writePages(200);
    left -= 1;
  };
  return source;
}

/** No pause is short enough, so there are as many rounds as there may be, and then it moves. */
const EVERY_ROUND = { downtimeLimitMs: 1, nonConvergence: "switch-over" } as const;

/** Migrates; when round n has ended, `changes[n - 1]` is changed. Memory must arrive exactly. */
async function migrated(
  out: ParameterOptions,
  changes: readonly ParameterOptions[],
): Promise<Report> {
  const live = new LiveParameters();
  const source = makeSource(changes.length);
  const { onLook } = source;
  let rounds = 0;
  // The first look is at what logs there are; then there is one after each round.
  source.onLook = () => {
    if (rounds > 0) onLook();
    const change = changes[rounds - 1];
    rounds += 1;
    if (change !== undefined) live.change(change);
  };
  const destination = new RecordingDestination();
  const outcome = await migratePair({
    source,
    destination,
    out: { ...out, ...EVERY_ROUND, maxRounds: changes.length + 1, live },
  });
  if (outcome.source.report === null) throw outcome.source.failure;
  expect(difference(source.blocks, destination.blocks ?? [])).toBeNull();
  return outcome.source.report;
}

test(`compression that is switched off ends with the next round (SEED=${seed})`, async () => {
  const report = await migrated({ compression: "zstd" }, [{ compression: "none" }, {}, {}]);
  const [first, ...others] = report.rounds;
  expect(first?.sentPages).toBe(PAGES);
  expect(report.pages.compressed).toBe(PAGES);
  const later = others.reduce((sum, { sentPages }) => sum + sentPages, 0);
  expect(report.pages.raw + report.pages.zero).toBe(later);
  expect(report.pages.raw).toBeGreaterThan(100);
});

test(`compression that is switched on begins with the next round (SEED=${seed})`, async () => {
  for (const compression of ["zstd", "deflate"] as const) {
    const report = await migrated({}, [{ compression }, {}, {}]);
    expect(report.pages.raw).toBe(PAGES);
    expect(report.pages.compressed).toBeGreaterThan(100);
  }
});

test(`codecs and levels change from round to round, and memory is exact (SEED=${seed})`, async () => {
  const report = await migrated({ xbzrle: true, compression: "auto", cpuLimitCores: 1 }, [
    { compression: "zstd", zstdLevel: 9 },
    { compression: "deflate", deflateLevel: 9 },
    { zstdLevel: 1, compression: "auto", cpuLimitCores: 0 },
    { compression: "none" },
    { compression: "zstd" },
  ]);
  expect(report.pages.delta).toBeGreaterThan(0);
  expect(report.rounds.length).toBe(7);
});

test(`deltas end with auto, unless they are wanted without it, and come back with it (SEED=${seed})`, async () => {
  const deltas = async (out: ParameterOptions, changes: readonly ParameterOptions[]) => {
    const { pages, channels } = await migrated(out, changes);
    const lookups = channels.reduce((sum, { delta }) => sum + delta.hits + delta.misses, 0);
    return { made: pages.delta, lookups };
  };
  const auto = { compression: "auto" } as const;
  const none = { compression: "none" } as const;
  expect((await deltas(auto, [{}, {}, {}])).made).toBeGreaterThan(0);
  for (const other of [none, { compression: "zstd" }, { compression: "deflate" }] as const) {
    expect(await deltas(auto, [other, {}, {}])).toEqual({ made: 0, lookups: PAGES });
  }
  expect((await deltas({ ...auto, xbzrle: true }, [none, {}, {}])).made).toBeGreaterThan(0);
  expect((await deltas(auto, [none, {}, auto, {}, {}, {}])).made).toBeGreaterThan(0);
});

test(`auto that comes later makes no deltas: there is no room for versions (SEED=${seed})`, async () => {
  const report = await migrated({}, [{ compression: "auto" }, {}, {}, {}]);
  expect(report.pages.delta).toBe(0);
  expect(report.pages.compressed).toBeGreaterThan(0);
});

test(`settings change at any time, in the middle of frames, and memory is exact (SEED=${seed})`, async () => {
  const live = new LiveParameters();
  const source = makeSource(5);
  const destination = new RecordingDestination();
  const settings: readonly ParameterOptions[] = [
    { compression: "zstd", zstdLevel: 19 },
    { compression: "deflate", deflateLevel: 1 },
    { compression: "none" },
    { compression: "auto", cpuLimitCores: 0.1 },
    { compression: "deflate", deflateLevel: 9 },
    { compression: "zstd", zstdLevel: 1 },
  ];
  let changes = 0;
  const timer = setInterval(() => {
    try {
      live.change(settings[changes % settings.length] ?? {});
      changes += 1;
    } catch (error) {
      // It has not begun, or has just ended.
      if (!(error instanceof RangeError)) throw error;
    }
  }, 2);
  const out = { live, xbzrle: true, maxBandwidthBytesPerSecond: 16 * MIB };
  const outcome = await migratePair({ source, destination, out });
  clearInterval(timer);
  expect(outcome.source.failure).toBeNull();
  expect(difference(source.blocks, destination.blocks ?? [])).toBeNull();
  expect(changes).toBeGreaterThan(0);
});

test(`what changes before the threads are there holds for them as well (SEED=${seed})`, async () => {
  const live = new LiveParameters();
  const source = makeSource(0);
  const destination = new RecordingDestination();
  // The hosts have met, and threads are started next.
  const onPhase = (phase: string): void => {
    if (phase === "agree") live.change({ compression: "zstd" });
  };
  const { source: outcome } = await migratePair({ source, destination, out: { live, onPhase } });
  expect(outcome.failure).toBeNull();
  expect(outcome.report?.pages.compressed).toBe(PAGES);
});

test(`what is not live, or not legal, is refused, and the migration goes on as it was (SEED=${seed})`, async () => {
  const live = new LiveParameters();
  const source = makeSource(1);
  const destination = new RecordingDestination();
  const refused: (readonly string[])[] = [];
  const { onLook } = source;
  let isFirst = true;
  source.onLook = () => {
    onLook();
    if (!isFirst) return;
    isFirst = false;
    for (const patch of [
      { xbzrle: true },
      { xbzrleCacheBytes: 128 * MIB },
      { zstdLevel: 5 },
      { compression: "deflate", cpuLimitCores: 1 },
    ] as const) {
      try {
        live.change(patch);
        refused.push([]);
      } catch (error) {
        if (!(error instanceof MigrationError)) throw error;
        refused.push((error as MigrationError<"CONFIGURATION_INVALID">).facts.problems);
      }
    }
  };
  const { source: outcome } = await migratePair({ source, destination, out: { live } });
  expect(outcome.failure).toBeNull();
  expect(refused).toEqual([
    ['"xbzrle" cannot change while a migration runs'],
    [
      '"xbzrleCacheBytes" cannot change while a migration runs',
      expect.stringContaining('"xbzrle" must be true'),
    ],
    [expect.stringContaining('"compression" must be "zstd" or "auto"')],
    [expect.stringContaining('"compression" must be "auto"')],
  ]);
  expect(outcome.report?.pages.compressed).toBe(0);
  expect(() => live.change({ compression: "zstd" })).toThrow("no migration runs");
});

test(`a change is judged by what the start was judged by: a scan still needs its rounds (SEED=${seed})`, async () => {
  const live = new LiveParameters();
  const source = new RecordingSource({ seed, dirtyLog: "scan" });
  const destination = new RecordingDestination();
  const refused: unknown[] = [];
  source.onLook = () => {
    try {
      live.change({ maxRounds: 1 });
      refused.push(null);
    } catch (error) {
      refused.push(error);
    }
  };
  const { source: outcome } = await migratePair({ source, destination, out: { live } });
  expect(outcome.failure).toBeNull();
  expect(difference(source.blocks, destination.blocks ?? [])).toBeNull();
  expect(refused.length).toBeGreaterThan(0);
  for (const error of refused) {
    expect(error).toMatchObject({
      code: "CONFIGURATION_INVALID",
      facts: { problems: [expect.stringContaining("only when memory is read a second time")] },
    });
  }
});

test(`what a host prefers holds where nothing is given, and breaks no rule (SEED=${seed})`, async () => {
  const compressedWith = async (preferences: ParameterOptions, given: ParameterOptions) => {
    const blocks = allocate(SHAPE);
    for (const block of blocks) bytesOf(block).fill(7);
    const source = Object.assign(new RecordingSource({ seed, blocks }), { preferences });
    const destination = new RecordingDestination();
    const outcome = await migratePair({ source, destination, out: given });
    if (outcome.source.report === null) throw outcome.source.failure;
    return outcome.source.report.pages.compressed;
  };
  expect(await compressedWith({ compression: "zstd" }, {})).toBeGreaterThan(0);
  expect(await compressedWith({ compression: "zstd" }, { compression: "none" })).toBe(0);
  // Nobody gave a level, so it is no matter that nothing is compressed.
  expect(await compressedWith({ zstdLevel: 9 }, {})).toBe(0);
  await expect(compressedWith({ zstdLevel: 99 }, {})).rejects.toMatchObject({
    code: "CONFIGURATION_INVALID",
    facts: { problems: [expect.stringMatching(/^the host prefers: "zstdLevel" must be .* 99$/)] },
  });
});
