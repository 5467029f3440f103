import { expect, test } from "vitest";
import { Deadline } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import { rewrittenGuest, TouchedGuest } from "../bench/touched-guest.ts";
import { MISSING } from "../workers/fault-door.ts";
import { migratePair } from "./harness/pair.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const SHAPE = { bytes: 4 * MIB, pageBytes: 4096 };
const PAGES = SHAPE.bytes / SHAPE.pageBytes;
const FAULTS = 20;

test(`pages that lanes bring before the last round begins are of it, at both ends (SEED=${seed})`, async () => {
  const [from, to] = [new SharedArrayBuffer(SHAPE.bytes), new SharedArrayBuffer(SHAPE.bytes)];
  new Prng(seed).bytes(new Uint8Array(from));
  const guest = new TouchedGuest(to, { faults: 4 * FAULTS, pauseMs: 0 });
  // The guest runs there, and the main thread of both ends is held up until it has got some pages.
  const holdUp = (): void => {
    const deadline = new Deadline(20_000);
    const nobody = new Int32Array(new SharedArrayBuffer(4));
    while (Atomics.load(guest.door.words, MISSING) > PAGES - FAULTS && !deadline.passed) {
      Atomics.wait(nobody, 0, 0, 1);
    }
  };
  const { source, destination } = await migratePair({
    source: rewrittenGuest(from, SHAPE),
    destination: guest,
    out: {
      postcopy: "after-rounds",
      onPhase: (phase) => {
        if (phase === "postcopy") holdUp();
      },
    },
  });
  await guest.times();
  expect([source.failure, destination.failure]).toEqual([null, null]);
  expect(Buffer.from(to).equals(Buffer.from(from))).toBe(true);
  for (const { report } of [source, destination]) {
    const last = report?.rounds.at(-1);
    expect(last?.dirtyPages).toBe(PAGES);
    expect(last?.sentPages).toBeGreaterThanOrEqual(PAGES);
  }
});
