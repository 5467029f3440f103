import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { ChannelFigures, Report } from "../engine/statistics.ts";
import { allocate, bytesOf, difference } from "./harness/guest-memory.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const CHANNELS = 3;
const ROUNDS = 4;
const PAGES_WRITTEN = 300;

/** What the report says of a guest full of text that writes some pages in each of some rounds. */
async function reported(
  given: ParameterOptions,
  { pageBytes = 4 * KIB, writtenBytes = 64 } = {},
): Promise<Report> {
  const blocks = allocate([{ name: "ram", sizeBytes: 12 * MIB, pageBytes }]);
  for (const block of blocks) {
    const bytes = bytesOf(block);
    for (let at = 0; at < bytes.length; at += 1) bytes[at] = 97 + ((at * 7 + (at >> 9)) % 23);
  }
  const source = new RecordingSource({ seed, blocks });
  source.onLook = () => source.writePages(PAGES_WRITTEN, writtenBytes);
  const destination = new RecordingDestination();
  // No pause is short enough, so there are as many rounds as there may be.
  const limits = { downtimeLimitMs: 1, maxRounds: ROUNDS, nonConvergence: "switch-over" } as const;
  const out = { channels: CHANNELS, ...limits, ...given };
  const outcome = await migratePair({ source, destination, out });
  if (outcome.source.report === null) throw outcome.source.failure;
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
  return outcome.source.report;
}

function bulkOf({ channels }: Report): ChannelFigures[] {
  return channels.filter(({ lane }) => lane === "bulk");
}

/** Of all bulk channels together. */
function sumOf(report: Report, figure: (channel: ChannelFigures) => number): number {
  return bulkOf(report).reduce((sum, channel) => sum + figure(channel), 0);
}

const NO_DELTAS = {
  ...{ hits: 0, misses: 0, overflows: 0, evictions: 0, refusals: 0 },
  ...{ beforeBytes: 0, afterBytes: 0, choice: "" },
};
const NO_CODEC = {
  ...{ triedBytes: 0, beforeBytes: 0, afterBytes: 0, workMs: 0 },
  ...{ forcedFrames: 0, choice: "" },
};

test(`deltas are counted for each channel, and add up to what was sent (SEED=${seed})`, async () => {
  const report = await reported({ xbzrle: true, xbzrleCacheBytes: 64 * MIB });
  const bulk = bulkOf(report);
  expect(bulk.length).toBe(CHANNELS);
  // A channel that is slow from the start on hands its pages over, and compares none.
  expect(bulk.some((each) => each.delta.hits > 0)).toBe(true);
  for (const { delta, codec } of bulk) {
    expect(delta.afterBytes > 0).toBe(delta.beforeBytes > 0);
    expect(delta.afterBytes).toBeLessThanOrEqual(delta.beforeBytes / 10);
    expect(codec).toEqual(NO_CODEC);
  }
  const { delta, unchanged, zero } = report.pages;
  const guestPages = report.guestBytes / (4 * KIB);
  const dirtyPages = report.rounds.reduce((sum, round) => sum + round.dirtyPages, 0);
  const misses = sumOf(report, (each) => each.delta.misses);
  expect(sumOf(report, (each) => each.delta.hits) + misses).toBe(dirtyPages);
  // The first round found nothing; later ones miss only what another channel had before.
  expect(misses).toBeGreaterThanOrEqual(guestPages);
  // Pages that were zero have a version, too, but in the first round.
  const hits = sumOf(report, (each) => each.delta.hits);
  expect(hits).toBeGreaterThanOrEqual(delta + unchanged);
  expect(hits).toBeLessThanOrEqual(delta + unchanged + zero);
  expect(sumOf(report, (each) => each.delta.beforeBytes)).toBe(delta * 4 * KIB);
  expect(report.channels[0]).toMatchObject({ lane: "main", delta: NO_DELTAS, codec: NO_CODEC });
});

test(`pages that are full of noise are counted as overflows, and none as a delta (SEED=${seed})`, async () => {
  for (const pageBytes of [4 * KIB, 16 * KIB]) {
    // Alone: one channel has a version of all that is dirty after the first round.
    const options = { xbzrle: true, xbzrleCacheBytes: 64 * MIB, channels: 1 };
    const { pages, channels } = await reported(options, { pageBytes, writtenBytes: pageBytes });
    const delta = must(channels.find(({ lane }) => lane === "bulk")?.delta, "pages have a channel");
    expect(delta.overflows).toBeGreaterThan(0);
    // Pages that became zero are none, but nothing was known of those in the first round.
    expect(delta.overflows).toBeLessThanOrEqual(delta.hits - pages.unchanged);
    expect(delta.overflows).toBeGreaterThanOrEqual(delta.hits - pages.unchanged - pages.zero);
    expect([pages.delta, delta.beforeBytes, delta.afterBytes]).toEqual([0, 0, 0]);
  }
});

for (const codec of ["zstd", "deflate"] as const) {
  test(`${codec} is counted for each channel, and has no choice to tell (SEED=${seed})`, async () => {
    const report = await reported({ compression: codec });
    expect(sumOf(report, (each) => each.codec.afterBytes)).toBeGreaterThan(0);
    for (const { delta, codec: figures } of bulkOf(report)) {
      const { triedBytes, beforeBytes, afterBytes, workMs, choice } = figures;
      expect(triedBytes).toBeGreaterThanOrEqual(beforeBytes);
      expect(afterBytes > 0).toBe(beforeBytes > 0);
      expect(afterBytes).toBeLessThanOrEqual(beforeBytes / 4);
      expect(workMs > 0).toBe(triedBytes > 0);
      expect(choice).toBe("");
      expect(delta).toEqual(NO_DELTAS);
    }
    const { compressed } = report.pages;
    expect(sumOf(report, (each) => each.codec.beforeBytes)).toBe(compressed * 4 * KIB);
  });
}

const COST = String.raw`(?:not tried|\d+\.\d\d ms per MiB)`;
const WAY = "(?:zstd|deflate)(?: \\d)?";
const SAMPLE = String.raw`${WAY} to 0\.\d\d in \d+\.\d\d ms per MiB`;
const SAMPLES = `(?:; samples by ${SAMPLE}(?:, ${SAMPLE})*)?`;
const CHOICE = new RegExp(
  `^(?:raw|${WAY}): raw ${COST}, compressed ${COST}, changed \\d+ times${SAMPLES}$`,
);

const DELTA_COST = String.raw`(?:not known|\d+\.\d\d ms per MiB)`;
const DELTA_CHOICE = new RegExp(
  `^(?:no )?deltas: comparing ${DELTA_COST}, sending without ${DELTA_COST}, ` +
    "changed \\d+ times; \\d+ pages passed over$",
);

test(`auto says for each channel what it chose, and by which figures (SEED=${seed})`, async () => {
  const report = await reported({ compression: "auto" });
  for (const { codec, delta } of bulkOf(report)) {
    expect(codec.choice).toMatch(CHOICE);
    expect(delta.choice).toMatch(DELTA_CHOICE);
  }
  expect(report.channels[0]?.codec.choice).toBe("");
});

test(`auto sends pages that it has sent before as deltas (SEED=${seed})`, async () => {
  const report = await reported({ compression: "auto", channels: 2 });
  expect(report.pages.delta).toBeGreaterThan(0);
  expect(sumOf(report, ({ delta }) => delta.hits)).toBeGreaterThanOrEqual(report.pages.delta);
});

test(`auto chooses zstd for text on a slow link, and its figures are why (SEED=${seed})`, async () => {
  // Alone: what a channel finds beside others depends on what these leave it of the limit.
  const slow = { channels: 1, maxBandwidthBytesPerSecond: 2 * MIB };
  const report = await reported({ compression: "auto", ...slow });
  expect(report.pages.compressed).toBeGreaterThan(report.pages.raw);
  for (const { codec } of bulkOf(report))
    expect(codec.choice).toMatch(/^zstd.*: raw .*, compressed \d/);
});

test(`a cache smaller than a page makes no deltas, one larger than memory makes all (SEED=${seed})`, async () => {
  for (const pageBytes of [16 * KIB, 64 * KIB]) {
    // Each channel gets a fifth of it, which is less than 16 KiB.
    const small = await reported(
      { xbzrle: true, xbzrleCacheBytes: 64 * KIB, channels: 5 },
      { pageBytes },
    );
    expect([small.pages.delta, small.pages.unchanged]).toEqual([0, 0]);
    // One channel has nobody to hand pages over to, with versions that only it keeps.
    const large = await reported(
      { xbzrle: true, xbzrleCacheBytes: 1024 * MIB, channels: 1 },
      { pageBytes },
    );
    expect(sumOf(large, (each) => each.delta.misses)).toBe(large.guestBytes / pageBytes);
    expect(large.pages.delta).toBeGreaterThan(0);
  }
});

test(`a cache for far less than what is rewritten loses versions, and people are told (SEED=${seed})`, async () => {
  const small = await reported({ xbzrle: true, xbzrleCacheBytes: 1 * MIB, channels: 2 });
  expect(sumOf(small, ({ delta }) => delta.evictions)).toBeGreaterThan(0);
  expect(sumOf(small, ({ delta }) => delta.refusals)).toBeGreaterThan(0);
  const lost = sumOf(small, ({ delta }) => delta.evictions + delta.refusals);
  const hits = sumOf(small, ({ delta }) => delta.hits);
  expect(lost).toBeGreaterThan(hits);
  expect(lost + hits).toBeLessThanOrEqual(sumOf(small, ({ delta }) => delta.hits + delta.misses));
  // Of two channels, one that is slow for a moment hands over pages that have no place of their own there.
  const large = await reported({ xbzrle: true, xbzrleCacheBytes: 64 * MIB, channels: 1 });
  expect(sumOf(large, ({ delta }) => delta.evictions + delta.refusals)).toBe(0);
});

test(`by way, a channel's pages and bytes are all that was sent, headers aside (SEED=${seed})`, async () => {
  for (const given of [
    { xbzrle: true },
    { compression: "zstd", xbzrle: true },
    { compression: "auto" },
  ] as const) {
    const report = await reported({ ...given, xbzrleCacheBytes: 64 * MIB });
    const { raw, delta, compressed } = report.pages;
    const ways = (["raw", "delta", "codec"] as const).map((way) => ({
      pages: sumOf(report, (each) => each.ways[way].pages),
      bytes: sumOf(report, (each) => each.ways[way].sentBytes),
    }));
    const [rawWay, deltaWay, codecWay] = ways;
    expect(rawWay).toEqual({ pages: raw, bytes: raw * 4 * KIB });
    expect((deltaWay?.pages ?? 0) + (codecWay?.pages ?? 0)).toBe(delta + compressed);
    expect(codecWay?.bytes).toBe(sumOf(report, ({ codec }) => codec.afterBytes));
    const payload = ways.reduce((sum, { bytes }) => sum + bytes, 0);
    const sent = sumOf(report, ({ sentBytes }) => sentBytes);
    expect(payload).toBeLessThan(sent);
    // Frames have heads, and tables of runs: of a few bytes for each page at the most.
    expect(payload).toBeGreaterThan(sent * 0.75);
  }
});
