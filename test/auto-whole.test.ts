import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { ChannelFigures, Report } from "../engine/statistics.ts";
import { allocate, bytesOf, difference } from "./harness/guest-memory.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Words of bytes that are none: the harder a codec tries, the fewer bytes it makes of them. */
function fillWithWords(bytes: Uint8Array): void {
  const random = new Prng(seed);
  const words = Array.from({ length: 500 }, () => {
    const word = new Uint8Array(3 + random.below(9));
    random.bytes(word);
    return word;
  });
  for (let at = 0; at < bytes.length; ) {
    const word = must(words[random.below(words.length)], "there are words");
    bytes.set(word.subarray(0, bytes.length - at), at);
    at += word.length;
  }
}

/** Moves a guest by what `auto` chooses, over one channel. Returns its figures, and all. */
async function moved(
  given: ParameterOptions,
  sizeBytes: number,
): Promise<{ report: Report; bulk: ChannelFigures }> {
  const blocks = allocate([{ name: "ram", sizeBytes, pageBytes: 4 * KIB }]);
  for (const block of blocks) fillWithWords(bytesOf(block));
  const source = new RecordingSource({ seed, blocks });
  const destination = new RecordingDestination();
  const limits = { downtimeLimitMs: 1, maxRounds: 3, nonConvergence: "switch-over" } as const;
  const out = { channels: 1, compression: "auto", ...limits, ...given } as const;
  const { source: outcome } = await migratePair({ source, destination, out });
  if (outcome.report === null) throw outcome.failure;
  expect(difference(source.blocks, destination.blocks ?? [])).toBeNull();
  const bulk = outcome.report.channels.find(({ lane }) => lane === "bulk");
  return { report: outcome.report, bulk: must(bulk, "pages have a channel") };
}

/** So slow that a frame takes this link many times as long as any machine takes to make it. */
const SLOW = { maxBandwidthBytesPerSecond: 1 * MIB };

test(`auto changes its way for good while a slow link is waited for, and says why (SEED=${seed})`, async () => {
  const { bulk } = await moved(SLOW, 3 * MIB);
  const { choice } = bulk.codec;
  const [, chosen = "", compressed, changes] =
    /^(.+): raw .+, compressed ([\d.]+) ms per MiB, changed (\d+) times; samples by /.exec(
      choice,
    ) ?? [];
  // It began with the fastest.
  expect(["zstd 3", "zstd 7", "deflate 6"], choice).toContain(chosen);
  expect(Number(changes)).toBeGreaterThan(0);
  // What samples came to is why: fewer bytes than by the first way.
  const shares = [...choice.matchAll(/(zstd(?: \d)?|deflate \d) to ([\d.]+) in/g)];
  const shareOf = (name: string) => Number(shares.find(([, of]) => of === name)?.[2]);
  expect(shareOf(chosen), choice).toBeLessThan(shareOf("zstd"));
  // And what memory took that way is what the limit makes of so many bytes, at the least.
  expect(Number(compressed)).toBeGreaterThan(1000 * shareOf(chosen) * 0.8);
});

/** Tries so hard that some frames take longer than what may be spent at once, which is 20 ms. */
const HARD = { zstdLevel: 9, autoExtraTimePercent: 1000 };

test(`--cpu-limit holds frames back from the codec, and the report counts them (SEED=${seed})`, async () => {
  const lifted = await moved({ ...HARD, cpuLimitCores: 0 }, 3 * MIB);
  expect(lifted.bulk.codec.forcedFrames).toBe(0);
  const limited = await moved({ ...HARD, cpuLimitCores: 0.01 }, 3 * MIB);
  const { codec, ways } = limited.bulk;
  expect(codec.forcedFrames).toBeGreaterThan(0);
  expect(ways.raw.sentBytes).toBeGreaterThanOrEqual(codec.forcedFrames * 4 * KIB);
  expect(codec.triedBytes + ways.raw.sentBytes).toBe(3 * MIB);
});
