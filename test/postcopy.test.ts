import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { FaultProgress } from "../engine/statistics.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import type { GuestAttempt } from "./fixtures/cli-guest-source.ts";
import {
  type Arrival,
  addressOf,
  expectArrival,
  expectDiscarded,
  expectToMove,
  expectUnharmed,
  startGuestDestination,
  startGuestSource,
  tellToLeave,
} from "./fixtures/cli-live-pair.ts";
import { failureIn, failureOf } from "./fixtures/cli-outcome.ts";
import { Story } from "./fixtures/cli-story.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

/** Each between two processes, with a live guest; the numbers are those of QEMU's table. */
const seed = seedFromEnvironment();

/** A guest that rewrites most of its memory over and over: it would not converge by itself. */
function busyShape(pageBytes = 4 * KIB, changes: Partial<GuestShape> = {}): GuestShape {
  const sizeBytes = Math.max(16 * MIB, 8 * pageBytes);
  const pages = sizeBytes / pageBytes;
  const half = Math.floor(pages / 2);
  const vcpu = { block: "ram", rateBytesPerSecond: 256 * MIB, changedBytes: 64 } as const;
  return {
    blocks: [{ name: "ram", sizeBytes, pageBytes }],
    seed,
    content: { zero: 0.3, text: 0.4, random: 0.3 },
    vcpus: [
      { ...vcpu, firstPage: 0, pageCount: half, pattern: "stride" },
      { ...vcpu, firstPage: half, pageCount: half, pattern: "sweep" },
    ],
    ...changes,
  };
}

/** Where nobody will mend it, what breaks shall be told, and not waited for. */
const RECOVERS_NOT = { recoverTimeoutMs: 200 };

/** A switchover that fits would be no post-copy. */
const HERE = { channels: 2, downtimeLimitMs: 1, ...RECOVERS_NOT } as const;

/** Moves a running guest, checks every page there, and that it runs in one place. */
async function moves(
  parameters: ParameterOptions,
  { shape = busyShape(), shared = {} }: { shape?: GuestShape; shared?: ParameterOptions } = {},
): Promise<Arrival> {
  return await expectToMove(
    { parameters: { ...HERE, ...shared, ...parameters } },
    {
      guest: { seed, shape },
      vcpuThreads: shape.vcpus.length,
      there: { ...RECOVERS_NOT, ...shared },
    },
  );
}

for (const [name, options] of [
  ["16, 18: postcopy/plain, preempt/plain: one lane", { postcopy: "after-rounds" }],
  [
    "16, 18: postcopy/preempt: two lanes, zstd, checksum",
    {
      postcopy: "after-rounds",
      priorityChannels: 2,
      compression: "zstd",
    },
  ],
] as const) {
  test(`${name}: the guest runs before its memory is there, and ends exact (SEED=${seed})`, async () => {
    const checksum = name.includes("checksum");
    const { phases, destination, source } = await moves(options, { shared: { checksum } });
    expect(phases.at(-1)).toBe("postcopy");
    expect(destination.faults?.count).toBeGreaterThan(0);
    expect(source.channels.filter(({ lane }) => lane === "priority")).toHaveLength(
      "priorityChannels" in options ? 2 : 1,
    );
  });
}

for (const [name, options] of [
  ["plain", {}],
  ["preempt/plain", { priorityChannels: 4 }],
  ["tcp/plain/zstd", { compression: "zstd" }],
] as const satisfies readonly [string, ParameterOptions][]) {
  test(`21: multifd+postcopy/${name}: what four channels sent before is all there (SEED=${seed})`, async () => {
    const { phases, source, destination } = await moves({
      postcopy: "after-rounds",
      channels: 4,
      ...options,
    });
    expect(phases.at(-1)).toBe("postcopy");
    expect(destination.faults?.count).toBeGreaterThan(0);
    const bulk = source.channels.filter(({ lane }) => lane === "bulk");
    expect(bulk).toHaveLength(4);
    for (const { sentBytes } of bulk) expect(sentBytes).toBeGreaterThan(0);
    expect(source.pages.compressed > 0).toBe("compression" in options);
  });
}

test(`21: multifd+postcopy/tcp/plain/cancel: of four channels, then a second destination (SEED=${seed})`, async () => {
  const parameters = { ...HERE, postcopy: "after-rounds", channels: 4 } as const;
  await using first = startGuestDestination({}, { vcpuThreads: 2 });
  await using source = startGuestSource("", { seed, shape: busyShape() });
  const story = new Story(source);
  const slowly = { ...parameters, maxBandwidthBytesPerSecond: 512 * KIB };
  tellToLeave(source, await addressOf(first), { parameters: slowly });
  await story.phase("precopy");
  source.kill("SIGTERM");
  expect(await expectUnharmed(story)).toMatchObject({ code: "CANCELLED", at: "source" });
  const left = failureOf(await expectDiscarded(first));
  expect(left).toMatchObject({ code: "CANCELLED", at: "source" });

  await using second = startGuestDestination({}, { vcpuThreads: 2 });
  tellToLeave(source, await addressOf(second), { parameters });
  const { destination } = await expectArrival(source, second, story);
  expect(destination.faults?.count).toBeGreaterThan(0);
});

test(`21: multifd+postcopy/xbzrle: a page that was dirty but is as it was sent comes, too (SEED=${seed})`, async () => {
  // Everything counts as written again, and nothing was.
  const { phases } = await expectToMove(
    { parameters: { postcopy: "after-rounds", xbzrle: true, ...RECOVERS_NOT } },
    {
      guest: { seed, shape: busyShape(), isPaused: true, isAllMarked: true },
      vcpuThreads: 2,
      there: RECOVERS_NOT,
      wakes: "early",
    },
  );
  expect(phases.at(-1)).toBe("postcopy");
});

test(`16: both ends tell how long who waited for pages, and the figures belong together (SEED=${seed})`, async () => {
  // So slow that the guest has to ask often.
  const { source, destination, told } = await moves({
    postcopy: "after-rounds",
    maxBandwidthBytesPerSecond: 48 * MIB,
  });
  // The last round is what the guest missed, of which each end has counts of its own.
  expect(destination.rounds).toHaveLength(source.rounds.length);
  expect(destination.rounds.slice(0, -1)).toEqual(source.rounds.slice(0, -1));
  const lasts = [source, destination].map(({ rounds }) => must(rounds.at(-1), "it had rounds"));
  for (const { dirtyPages, sentPages, sentBytes, elapsedMs } of lasts) {
    expect(dirtyPages).toBe(lasts[0]?.dirtyPages);
    expect(dirtyPages).toBeGreaterThan(0);
    expect(sentPages).toBeGreaterThanOrEqual(dirtyPages);
    expect(sentBytes).toBeGreaterThan(0);
    expect(elapsedMs).toBeGreaterThan(0);
  }
  const { repeatedPages = -1, ...faults } = must(source.faults, "it was post-copy");
  expect(destination.faults).toEqual(faults);
  // Once for a request, at the most: nothing else is sent twice.
  expect(repeatedPages).toBeGreaterThanOrEqual(0);
  expect(repeatedPages).toBeLessThanOrEqual(faults.stages.queued.count);
  const { count, blockedMs, vcpus, stages } = faults;
  for (const figures of [faults, ...Object.values(stages)]) {
    const { p50Us, p90Us, p99Us, p999Us, maxUs } = figures;
    expect(figures.count).toBeGreaterThan(0);
    const rising = [1, p50Us, p90Us, p99Us, p999Us, maxUs];
    expect(rising).toEqual(rising.toSorted((one, other) => one - other));
  }
  const { queued, wire, served, installed } = stages;
  // What bulk channels bring first was not asked for. The last waits may end as they are counted.
  expect(queued.count).toBeLessThanOrEqual(count + vcpus.length);
  expect(wire.count).toBe(installed.count);
  for (const answers of [wire, served]) {
    expect(answers.count).toBeLessThanOrEqual(queued.count);
  }
  expect(vcpus).toHaveLength(2);
  for (const vcpu of vcpus) expect(vcpu.blockedMs).toBeGreaterThan(0);
  expect(vcpus.reduce((sum, vcpu) => sum + vcpu.blockedMs, 0)).toBeCloseTo(blockedMs, 6);
  // Half of the waits were as long as the median at least, which is rounded up by 9 %.
  expect(blockedMs * 1000).toBeGreaterThanOrEqual((count / 2) * (faults.p50Us / 1.1));
  expect(blockedMs * 1000).toBeLessThanOrEqual((count + vcpus.length) * faults.maxUs);
  // Progress told it on the way: all that each end knows, and never more than came to be.
  const here = must(told.destination.at(-1), "it took a while");
  const there = must(told.source.at(-1), "it took a while");
  const { served: _served, ...stagesHere } = stages;
  expect(here.vcpus?.length).toBeGreaterThan(0);
  expect(shapeOf({ ...here, vcpus })).toEqual(shapeOf({ ...faults, stages: stagesHere }));
  expect(shapeOf(there)).toEqual(shapeOf({ stages: { served } }));
  expect(here.count).toBeGreaterThan(0);
  expect(here.count).toBeLessThanOrEqual(count);
  expect(here.blockedMs).toBeLessThanOrEqual(blockedMs);
  for (const [stage, { count }] of Object.entries({ ...here.stages, ...there.stages })) {
    expect(count, stage).toBeGreaterThan(0);
    expect(count, stage).toBeLessThanOrEqual(stages[stage as keyof typeof stages].count);
  }
});

/** The names in a tree of figures, without the figures. */
function shapeOf(figures: FaultProgress): unknown {
  return JSON.parse(JSON.stringify(figures, (_, value) => (typeof value === "number" ? 0 : value)));
}

for (const pageBytes of [64 * KIB, 2 * MIB]) {
  test(`pages of ${pageBytes / KIB} KiB (SEED=${seed})`, async () => {
    const { destination } = await moves(
      { postcopy: "after-rounds" },
      { shape: busyShape(pageBytes) },
    );
    expect(destination.faults?.count).toBeGreaterThan(0);
  });
}

test(`a guest that does not converge goes over instead (SEED=${seed})`, async () => {
  const { phases, source } = await moves({ postcopy: "not-converging", maxRounds: 2 });
  expect(phases.at(-1)).toBe("postcopy");
  expect(source.rounds).toHaveLength(3);
});

test(`post-copy begins when it is asked for (SEED=${seed})`, async () => {
  await using destination = startGuestDestination(RECOVERS_NOT, { vcpuThreads: 2 });
  await using source = startGuestSource("", { seed, shape: busyShape() });
  const story = new Story(source);
  const slowly = { maxRounds: 1000, maxBandwidthBytesPerSecond: 64 * MIB };
  const parameters = { ...HERE, ...slowly, postcopy: "manual" } as const;
  tellToLeave(source, await addressOf(destination), { parameters });
  await story.phase("precopy");
  source.tell("post-copy");
  const { phases } = await expectArrival(source, destination, story);
  expect(phases.at(-1)).toBe("postcopy");
});

test(`a guest that converges first goes as ever, with its lanes unused (SEED=${seed})`, async () => {
  const shape = busyShape();
  const { phases, destination } = await moves(
    { postcopy: "not-converging", downtimeLimitMs: 100_000, timeoutMs: 200_000 },
    {
      shape: { ...shape, vcpus: shape.vcpus.map((vcpu) => ({ ...vcpu, rateBytesPerSecond: MIB })) },
    },
  );
  expect(phases.at(-1)).toBe("resume");
  expect(destination.faults).toBeUndefined();
});

test(`19: a link that breaks in post-copy and stays broken leaves both ends their memory, and says so (SEED=${seed})`, async () => {
  const limits = { channelTimeoutMs: 2000, recoverTimeoutMs: 200 };
  await using destination = startGuestDestination(limits, { vcpuThreads: 2 });
  await using source = startGuestSource("", { seed, shape: busyShape() });
  const story = new Story(source);
  await using relay = await Relay.start();
  // What is missing has begun to come, and the rest never will.
  relay.at({ channel: 1, frame: "end", where: "before" }, "cut link");
  const parameters = { channels: 2, postcopy: "after-rounds", stepTimeoutMs: 5000, ...limits };
  tellToLeave(source, relay.before(await addressOf(destination)), { parameters } as GuestAttempt);
  const failed = must(await story.next("completed", "failed"), "it has an outcome");
  const arrived = await destination.exit;
  const codes = [failureIn(failed), failureOf(arrived)].map(({ code }) => code);
  expect(codes).toEqual(["POSTCOPY_INTERRUPTED", "POSTCOPY_INTERRUPTED"]);
  // The source's guest stays paused, and vCPUs that wait for a page still follow orders.
  const state = await story.next("state");
  expect(state).toMatchObject({ running: false, runsOn: false, problems: [] });
  const starved = arrived.events.find(({ event }) => event === "starved");
  expect(starved).toMatchObject({ running: true, obeys: true });
});

for (const [when, wakes] of [
  ["when all its memory is there", "late"],
  ["while its memory comes", "early"],
] as const) {
  test(`17: postcopy/suspend: a guest that was paused is paused there, and wakes ${when} (SEED=${seed})`, async () => {
    await using arriving = startGuestDestination({}, { vcpuThreads: 2, wakes });
    await using source = startGuestSource("", { seed, shape: busyShape(), isPaused: true });
    const story = new Story(source);
    tellToLeave(source, await addressOf(arriving), {
      parameters: { channels: 2, postcopy: "manual", maxBandwidthBytesPerSecond: 32 * MIB },
      // In the first round: a guest that writes nothing would have nothing missing after it.
      goesOverAtOnce: true,
    });
    const leaves = must(await story.next("leaves"), "it says so");
    expect(leaves["running"]).toBe(false);
    const { destination, events } = await expectArrival(source, arriving, story);
    const completed = await source.waitFor("completed");
    expect(completed["writtenPages"]).toBe(leaves["writtenPages"]);
    const over = events.find(({ phase }) => phase === "postcopy");
    expect(over).toMatchObject({ running: false });
    const isEarly = wakes === "early";
    const woken = must(
      events.find(({ event }) => event === "woken"),
      "it came as one that was paused",
    );
    expect(woken).toMatchObject({ running: isEarly, problems: [] });
    // Who sleeps waits for nothing, and writes nothing.
    expect((destination.faults?.count ?? -1) > 0).toBe(isEarly);
    expect(Number(woken["writtenPages"]) > 0).toBe(isEarly);
  });
}
