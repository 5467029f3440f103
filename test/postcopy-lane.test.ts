import { inspect } from "node:util";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import { untilWritten } from "./fixtures/memory-guest-shapes.ts";
import { warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { migratePair, type Outcome } from "./harness/pair.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";
import { bodyOf, frameBytes, KIND, u32 } from "./wire-peer.ts";

/** What a live priority lane is told that nobody should say, and channels that break beside it. */
const seed = seedFromEnvironment();
const PAGES = 4096;
/** With two bulk channels. */
const LANE = 3;

beforeAll(warmUp);

const SHAPE: GuestShape = {
  blocks: [{ name: "ram", sizeBytes: PAGES * 4 * KIB, pageBytes: 4 * KIB }],
  seed,
  content: { zero: 0.2, text: 0.4, random: 0.4 },
  vcpus: [
    {
      block: "ram",
      firstPage: 0,
      pageCount: PAGES,
      pattern: "stride",
      rateBytesPerSecond: 512 * MIB,
      changedBytes: 64,
    },
  ],
};

interface Moved {
  readonly guest: MemoryGuest;
  readonly to: MemoryGuestDestination;
  readonly source: Outcome;
  readonly destination: Outcome;
}

async function goesOver(relay: Relay): Promise<Moved> {
  const guest = await MemoryGuest.create(SHAPE);
  onTestFinished(() => guest.stop());
  const to = new MemoryGuestDestination({ vcpuThreads: 1 });
  onTestFinished(() => to.discard());
  await guest.run();
  await untilWritten(guest, 200);
  const outcome = await migratePair({
    source: guest,
    destination: to,
    relay,
    out: {
      postcopy: "after-rounds",
      downtimeLimitMs: 1,
      channelTimeoutMs: 5000,
      recoverTimeoutMs: 200,
      // So slow that the guest has to ask: lanes are not held to it.
      maxBandwidthBytesPerSecond: 48 * MIB,
    },
    in: { channelTimeoutMs: 5000, recoverTimeoutMs: 200 },
  });
  return { guest, to, ...outcome };
}

function request(block: number, page: number, number: number, sequence: number): Buffer {
  const body = bodyOf(u32(block), u32(page), u32(number));
  return frameBytes({ kind: KIND.request, sequence, body, hasChecksum: true });
}

function sequenceOf(frame: Buffer): number {
  return frame.readUInt32LE(8);
}

/** By what is wrong with it: what a source gets in the place of the first request. */
const REQUESTS: Readonly<Record<string, (sequence: number) => Buffer>> = {
  "block that the request names": (sequence) => request(1, 0, 0, sequence),
  "page beyond the block": (sequence) => request(0, PAGES, 0, sequence),
  "request number": (sequence) => request(0, 0, 7, sequence),
  "flood of requests": (sequence) => {
    const each = (_: unknown, number: number) => request(0, 5, number, sequence + number);
    return Buffer.concat(Array.from({ length: PAGES + 1 }, each));
  },
};

/** A guest may ask before its RUNNING has arrived: then the source cannot tell that it runs there. */
const GONE_OVER = /^(POSTCOPY_INTERRUPTED|HANDOVER_UNKNOWN)$/;

for (const [what, forged] of Object.entries(REQUESTS)) {
  test(`a wrong ${what} ends post-copy, and no memory is harmed (SEED=${seed})`, async () => {
    const leaks = new LeakCheck();
    {
      await using relay = await Relay.start();
      relay.forge(LANE, "request", (frame) => forged(sequenceOf(frame)));
      const { guest, to, source, destination } = await goesOver(relay);
      expect(source.failure?.code).toMatch(GONE_OVER);
      expect(source.failure).toMatchObject({ at: "source", cause: { code: "FRAME_CORRUPT" } });
      expect(destination.failure).toMatchObject({ code: "POSTCOPY_INTERRUPTED" });
      // One guest runs, and what only the source has is as it was when it paused.
      expect([guest.running, to.guest.running]).toEqual([false, true]);
      expect(await guest.verify()).toEqual([]);
      await to.guest.pause();
      await to.guest.stop();
      await guest.stop();
    }
    await leaks.settled();
  });
}

test(`a request before the guest has gone over spares it, and it runs on (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  // WELCOME was the first frame of this direction.
  relay.at({ channel: 0, frame: "devices", where: "before" }, () => {
    relay.toSource(LANE, request(0, 0, 0, 1));
    // The source looks at its lanes now and then: READY must not come first.
    relay.do("stall", 0);
  });
  const { guest, source } = await goesOver(relay);
  expect(source.failure).toMatchObject({ code: "FRAME_UNEXPECTED" });
  expect([guest.running, guest.tracking]).toEqual([true, false]);
});

/** By what is wrong with it: what a destination gets in the place of the first page asked for. */
const ANSWERS: Readonly<Record<string, (frame: Buffer) => Buffer>> = {
  "of a block that does not exist": (frame) => changed(frame, 24, 9),
  "beyond the block": (frame) => changed(frame, 32, PAGES),
  "in an encoding that does not exist": (frame) => changed(frame, 38, 9),
  "in no frame at all": (frame) => changed(frame, 0, 0),
};

function changed(frame: Buffer, at: number, value: number): Buffer {
  const other = Buffer.from(frame);
  if (at === 38) other.writeUInt8(value, at);
  else other.writeUInt32LE(value, at);
  return other;
}

for (const [what, forged] of Object.entries(ANSWERS)) {
  test(`a page ${what} is not placed, and both ends keep what they have (SEED=${seed})`, async () => {
    await using relay = await Relay.start();
    relay.forge(LANE, "pages", forged);
    const { guest, to, source, destination } = await goesOver(relay);
    expect(destination.failure?.cause).toMatchObject({ code: "FRAME_CORRUPT" });
    expect(source.failure?.code).toMatch(GONE_OVER);
    expect(destination.failure?.code).toBe("POSTCOPY_INTERRUPTED");
    expect([guest.running, to.guest.running]).toEqual([false, true]);
    expect(await guest.verify()).toEqual([]);
  });
}

test(`a page that is left out is missed, and not taken for zero (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  // Another one comes in its place, which is no harm in itself. Several, since a bulk channel may bring
  // one that a lane repeats.
  for (let forged = 0; forged < 12; forged += 1) {
    relay.forge(LANE, "pages", (frame) => {
      const page = frame.readUInt32LE(32);
      return changed(frame, 32, page === 0 ? 1 : 0);
    });
  }
  const { guest, source, destination } = await goesOver(relay);
  expect(destination.failure?.cause).toMatchObject({
    code: "FRAME_CORRUPT",
    facts: { field: "pages that never came" },
  });
  expect(source.failure?.code).toBe("POSTCOPY_INTERRUPTED");
  expect(await guest.verify()).toEqual([]);
});

for (const [what, where] of [
  ["within a frame", "middle"],
  ["between two frames", "after"],
] as const) {
  for (const isMended of [false, true]) {
    const fate = isMended ? "another connection takes its place" : "the other has its shards";
    test(`a bulk channel is cut ${what} in post-copy, and ${fate} (SEED=${seed})`, async () => {
      await using relay = await Relay.start();
      relay.isMended = isMended;
      relay.at({ channel: 0, frame: "running", where: "before" }, () => {
        relay.at({ channel: 2, frame: "pages", where }, "cut");
      });
      const { guest, to, source, destination } = await goesOver(relay);
      // In full, should it fail: which end saw what.
      expect(`${inspect(source.failure)} ${inspect(destination.failure)}`).toBe("null null");
      const losses = source.report?.channels.map((channel) => channel.losses);
      expect(losses?.[2]).toBeGreaterThan(0);
      expect([guest.running, to.guest.running]).toEqual([false, true]);
      await untilWritten(to.guest, to.guest.writtenPages + 100);
      await to.guest.pause();
      expect(await to.guest.verify()).toEqual([]);
    });
  }
}
