import { beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import type { Progress, Report } from "../engine/statistics.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { type Point, Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

/** A bulk channel that is lost before COMMIT: the others send what it may not have brought over. */
const seed = seedFromEnvironment();
const CHANNELS = 4;
const WRITTEN_PAGES = 200;

beforeAll(warmUp);

/** Relays are single use, and not there when leaks are looked for. */
async function arrives(
  points: readonly Point[],
  options: { channels: number; isMended?: boolean; deed?: "cut" | "stall"; limitMs?: number },
): Promise<Report> {
  const rig = new FaultRig(seed);
  // So many that each channel has some to send in every round.
  rig.source.onLook = () => rig.source.writePages(WRITTEN_PAGES);
  const { channels, isMended = false, deed = "cut", limitMs = 10_000 } = options;
  const limits = { channelTimeoutMs: limitMs };
  const outcome = await (async () => {
    await using relay = await Relay.start();
    relay.isMended = isMended;
    for (const point of points) relay.at(point, deed);
    const out = { channels, ...limits, stepTimeoutMs: 3 * limitMs };
    return await rig.attempt({ relay, out, in: limits });
  })();
  expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
  rig.expectArrived();
  await rig.expectNoLeaks();
  return must(outcome.source.report, "it moved");
}

function lossesOf({ channels }: Report): number[] {
  return channels.map(({ losses }) => losses);
}

for (const point of [
  { channel: 2, frame: "pages", where: "before" },
  { channel: 2, frame: "pages", where: "middle" },
  { channel: 2, frame: "pages", nth: 2, where: "after" },
  { channel: 2, frame: "fence", nth: 2, where: "before" },
  { channel: 2, frame: "fence", nth: 2, where: "middle" },
  { channel: 2, frame: "fenced", nth: 2, where: "before" },
  { channel: 2, frame: "fenced", nth: 2, where: "after" },
  { channel: 2, frame: "fence", nth: 3, where: "before" },
  { channel: 2, frame: "fenced", nth: 3, where: "middle" },
  { channel: 2, frame: "end", where: "before" },
  { channel: 2, frame: "end", where: "middle" },
] as const satisfies readonly Point[]) {
  const nth = "nth" in point ? ` ${point.nth}` : "";

  test(`one of four is cut ${point.where} ${point.frame}${nth}: the guest arrives (SEED=${seed})`, async () => {
    const report = await arrives([point], { channels: CHANNELS });
    // Whether the loss of the very last frame is noticed in time is a matter of luck, and of no matter.
    if (point.frame !== "end") expect(lossesOf(report)).toEqual([0, 0, 1, 0, 0]);
  });
}

test(`two that are cut at the same time, and one of them comes back (SEED=${seed})`, async () => {
  const points = [2, 4].map((channel) => {
    return { channel, frame: "pages", nth: 2, where: "middle" } as const;
  });
  expect(lossesOf(await arrives(points, { channels: CHANNELS }))).toEqual([0, 0, 1, 0, 1]);
  expect(lossesOf(await arrives(points, { channels: CHANNELS, isMended: true }))).toEqual([
    0, 0, 1, 0, 1,
  ]);
});

for (const point of [
  { channel: 1, frame: "pages", where: "middle" },
  { channel: 1, frame: "pages", nth: 9, where: "before" },
  { channel: 1, frame: "fence", nth: 2, where: "before" },
  { channel: 1, frame: "fenced", nth: 2, where: "before" },
  { channel: 1, frame: "fence", nth: 3, where: "middle" },
] as const satisfies readonly Point[]) {
  const nth = "nth" in point ? ` ${point.nth}` : "";

  test(`the only one is cut ${point.where} ${point.frame}${nth} and comes back (SEED=${seed})`, async () => {
    expect(lossesOf(await arrives([point], { channels: 1, isMended: true }))).toEqual([0, 1]);
  });
}

test(`the only one is cut when nothing is left to send: it need not come back (SEED=${seed})`, async () => {
  for (const where of ["before", "middle"] as const) {
    await arrives([{ channel: 1, frame: "end", where }], { channels: 1 });
  }
});

test(`a channel that is cut again as soon as it comes back, and again (SEED=${seed})`, async () => {
  const points = [1, 2, 3, 4, 5].map((nth) => {
    return { channel: 2, frame: "hello", nth: 1 + nth, where: "after" } as const;
  });
  const first = { channel: 2, frame: "pages", where: "after" } as const;
  await arrives([first, ...points], { channels: 2, isMended: true });
});

for (const point of [
  { channel: 2, frame: "pages", nth: 2, where: "middle" },
  { channel: 2, frame: "pages", nth: 2, where: "before" },
  { channel: 2, frame: "fence", nth: 2, where: "after" },
  { channel: 2, frame: "fenced", nth: 2, where: "middle" },
] as const satisfies readonly Point[]) {
  test(`one of four stalls ${point.where} ${point.frame} ${point.nth}, and is given up (SEED=${seed})`, async () => {
    const report = await arrives([point], { channels: CHANNELS, deed: "stall", limitMs: 700 });
    expect(lossesOf(report)).toEqual([0, 0, 1, 0, 0]);
  });
}

test(`progress says how many channels work (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.onLook = () => rig.source.writePages(500);
  const seen = new Set<number>();
  {
    await using relay = await Relay.start();
    relay.at({ channel: 2, frame: "pages", nth: 2, where: "after" }, "cut");
    const onProgress = ({ workingChannels }: Progress): void => void seen.add(workingChannels);
    const pace = { maxBandwidthBytesPerSecond: 8 * MIB, downtimeLimitMs: 2000 };
    await rig.attempt({ relay, out: { channels: 3, onProgress, ...pace } });
  }
  rig.expectArrived();
  expect(seen).toContain(2);
});
