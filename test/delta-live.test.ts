import { expect, onTestFinished, test } from "vitest";
import { KIB } from "../base/units.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { mixedShape, untilWritten } from "./fixtures/memory-guest-shapes.ts";
import { migratePair } from "./harness/pair.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const WAYS: Readonly<Record<string, ParameterOptions>> = {
  "in deltas": { xbzrle: true },
  "in deltas, with a cache for a few of its pages": { xbzrle: true, xbzrleCacheBytes: 256 * KIB },
  "by zstd": { compression: "zstd" },
  "in deltas and by deflate": { xbzrle: true, compression: "deflate" },
  "by what auto chooses": { compression: "auto" },
};

for (const [how, options] of Object.entries(WAYS)) {
  test(`a guest that writes at full speed arrives to the last write: ${how} (SEED=${seed})`, async () => {
    const source = await MemoryGuest.create(mixedShape(seed));
    onTestFinished(() => source.stop());
    const destination = new MemoryGuestDestination();
    onTestFinished(() => destination.discard());
    await source.run();
    await untilWritten(source, 500);
    const outcome = await migratePair({
      source,
      destination,
      out: {
        ...options,
        channels: 3,
        chunkBytes: 128 * KIB,
        checksum: true,
        maxRounds: 4,
        // It writes faster than anything sends: it need not converge, but it must arrive.
        downtimeLimitMs: 1,
        nonConvergence: "switch-over",
      },
      in: { chunkBytes: 128 * KIB, checksum: true },
    });
    if (outcome.source.report === null) throw outcome.source.failure;
    const { pages, rounds } = outcome.source.report;
    expect(rounds.length).toBeGreaterThan(1);
    if (options.xbzrle === true) expect(pages.delta).toBeGreaterThan(0);
    if (options.compression !== undefined) expect(pages.compressed).toBeGreaterThan(0);
    const { guest } = destination;
    await guest.pause();
    expect(await guest.verify()).toEqual([]);
  });
}
