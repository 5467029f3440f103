import { beforeAll, expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { Report } from "../engine/statistics.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { mixedShape, untilWritten } from "./fixtures/memory-guest-shapes.ts";
import { BusyGuest } from "./harness/busy-guest.ts";
import { warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { migratePair } from "./harness/pair.ts";
import { type Deed, Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/** Channels that are lost under a guest that writes at full speed: it arrives to the last write. */
const seed = seedFromEnvironment();
const CHANNELS = 4;
/** `LOSSES=20` for a long search. */
const RUNS = Number(process.env["LOSSES"] ?? 1);

beforeAll(warmUp);

/** It writes faster than anything sends: it need not converge, but it must arrive. */
const HURRIED = {
  channels: CHANNELS,
  chunkBytes: 128 * KIB,
  maxRounds: 4,
  downtimeLimitMs: 1,
  nonConvergence: "switch-over",
} as const satisfies ParameterOptions;

/** Plans what shall happen to a channel at some frame of its own, of all that it may come to send. */
function strike(relay: Relay, random: Prng, channel: number, deed: Deed = "cut"): void {
  const frame = random.below(4) === 0 ? "fence" : "pages";
  const nth = frame === "fence" ? 2 + random.below(3) : 1 + random.below(24);
  const where = must((["before", "middle", "after"] as const)[random.below(3)], "three places");
  relay.at({ channel, frame, nth, where }, deed);
}

async function migratesBusily(relay: Relay, options: ParameterOptions): Promise<Report> {
  const source = await MemoryGuest.create(mixedShape(seed));
  onTestFinished(() => source.stop());
  const destination = new MemoryGuestDestination();
  onTestFinished(() => destination.discard());
  await source.run();
  await untilWritten(source, 500);
  const { checksum = false } = options;
  const outcome = await migratePair({
    source,
    destination,
    relay,
    out: { ...HURRIED, ...options },
    in: { chunkBytes: 128 * KIB, checksum, channelTimeoutMs: options.channelTimeoutMs ?? 10_000 },
  });
  await source.stop();
  if (outcome.source.report === null) throw outcome.source.failure;
  if (outcome.destination.report === null) throw outcome.destination.failure;
  const { guest } = destination;
  await guest.pause();
  expect(await guest.verify()).toEqual([]);
  await guest.stop();
  return outcome.source.report;
}

function lossesOf({ channels }: Report): number {
  return channels.reduce((sum, { losses }) => sum + losses, 0);
}

const WAYS: Readonly<Record<string, ParameterOptions>> = {
  "as it is": {},
  "with checksums": { checksum: true },
  "with deltas": { xbzrle: true },
  "with deltas in a small cache": { xbzrle: true, xbzrleCacheBytes: 256 * KIB },
  "with zstd": { compression: "zstd" },
  "with deltas and deflate": { xbzrle: true, compression: "deflate" },
  "with what pays": { compression: "auto" },
};

for (const [way, options] of Object.entries(WAYS)) {
  test(`one of four is cut at random moments: ${way} (SEED=${seed})`, async () => {
    const random = new Prng(seed);
    const leaks = new LeakCheck();
    for (let run = 0; run < RUNS; run += 1) {
      await using relay = await Relay.start();
      strike(relay, random, 1 + random.below(CHANNELS));
      await migratesBusily(relay, options);
    }
    await leaks.settled();
  });

  test(`channels are cut and come back, again and again: ${way} (SEED=${seed})`, async () => {
    const random = new Prng(seed);
    const leaks = new LeakCheck();
    await using relay = await Relay.start();
    relay.isMended = true;
    for (let times = 0; times < 8; times += 1) strike(relay, random, 1 + random.below(CHANNELS));
    const { pages } = await migratesBusily(relay, options);
    const hasDeltas = options.xbzrle === true || options.compression === "auto";
    if (hasDeltas) expect(pages.delta).toBeGreaterThan(0);
    await relay[Symbol.asyncDispose]();
    await leaks.settled();
  });
}

test(`three of four are cut at random moments (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const leaks = new LeakCheck();
  for (let run = 0; run < RUNS; run += 1) {
    await using relay = await Relay.start();
    const spared = 1 + random.below(CHANNELS);
    for (let channel = 1; channel <= CHANNELS; channel += 1) {
      if (channel !== spared) strike(relay, random, channel);
    }
    await migratesBusily(relay, {});
  }
  await leaks.settled();
});

test(`the only channel is cut and comes back (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.isMended = true;
  relay.at({ channel: 1, frame: "pages", nth: 3, where: "middle" }, "cut");
  expect(lossesOf(await migratesBusily(relay, { channels: 1, xbzrle: true }))).toBe(1);
});

test(`a channel that stalls is given up in time (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (let run = 0; run < RUNS; run += 1) {
    await using relay = await Relay.start();
    strike(relay, random, 1 + random.below(CHANNELS), "stall");
    await migratesBusily(relay, { channelTimeoutMs: 1500, stepTimeoutMs: 15_000 });
  }
});

test(`a guest that is scanned arrives exactly, whatever channels are cut (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (const options of [{}, { xbzrle: true }]) {
    const shape = (["shared", "file"] as const).map((kind) => {
      return { kind, name: kind, sizeBytes: 4 * MIB, pageBytes: 4 * KIB };
    });
    await using source = new BusyGuest(shape, seed);
    await source.start();
    await using relay = await Relay.start();
    relay.isMended = true;
    for (let times = 0; times < 4; times += 1) strike(relay, random, 1 + random.below(CHANNELS));
    const outcome = await migratePair({
      source,
      destination: source.destination(),
      relay,
      out: { ...HURRIED, ...options },
      in: { chunkBytes: 128 * KIB },
    });
    if (outcome.source.report === null) throw outcome.source.failure;
    expect(source.difference()).toBe(null);
  }
});
