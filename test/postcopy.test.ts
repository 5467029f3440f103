import { beforeAll, expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { BlockAnnouncement } from "../engine/block.ts";
import { migrateIn } from "../engine/destination.ts";
import type { DeviceSection } from "../engine/host.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { PostcopySwitch } from "../engine/postcopy-switch.ts";
import { type MigrateOutOptions, migrateOut } from "../engine/source.ts";
import type { FaultProgress, Report } from "../engine/statistics.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import { untilWritten } from "./fixtures/memory-guest-shapes.ts";
import { verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { migratePair, outcomeOf } from "./harness/pair.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

beforeAll(warmUp);

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

interface Moved {
  readonly guest: MemoryGuest;
  readonly to: MemoryGuestDestination;
  readonly phases: string[];
  readonly source: Report;
  readonly destination: Report;
  /** What progress told of faults at either end. */
  readonly told: { readonly source: FaultProgress[]; readonly destination: FaultProgress[] };
}

async function created(shape: GuestShape): Promise<MemoryGuest> {
  const guest = await MemoryGuest.create(shape);
  onTestFinished(() => guest.stop());
  return guest;
}

/** Moves a running guest, checks every page there, and that it runs in one place. */
async function moves(
  options: MigrateOutOptions,
  {
    shape = busyShape(),
    expected,
    shared = {},
  }: { shape?: GuestShape; expected?: BlockAnnouncement[]; shared?: ParameterOptions } = {},
): Promise<Moved> {
  const guest = await created(shape);
  const to = new MemoryGuestDestination({
    vcpuThreads: shape.vcpus.length,
    ...(expected === undefined ? {} : { expected }),
  });
  onTestFinished(() => to.discard());
  await guest.run();
  await untilWritten(guest, 100);
  const address = Promise.withResolvers<string>();
  const phases: string[] = [];
  const told: Moved["told"] = { source: [], destination: [] };
  const arriving = migrateIn(to, "tcp:127.0.0.1:0", {
    ...RECOVERS_NOT,
    ...shared,
    onListening: address.resolve,
    onPhase: (phase) => phases.push(phase),
    onProgress: ({ faults }) => faults !== undefined && told.destination.push(faults),
  });
  arriving.catch(address.reject);
  const leaving = migrateOut(guest, await address.promise, {
    channels: 2,
    // A switchover that fits would be no post-copy.
    downtimeLimitMs: 1,
    ...RECOVERS_NOT,
    ...shared,
    onProgress: ({ faults }) => faults !== undefined && told.source.push(faults),
    ...options,
  });
  const [source, destination] = await Promise.all([leaving, arriving]);
  expect(guest.running).toBe(false);
  expect(to.guest.running).toBe(true);
  await untilWritten(to.guest, to.guest.writtenPages + 100);
  await to.guest.pause();
  expect(await to.guest.verify()).toEqual([]);
  return { guest, to, phases, source, destination, told };
}

for (const [name, options] of [
  ["one lane", { postcopy: "after-rounds" }],
  [
    "two lanes, zstd, checksum",
    {
      postcopy: "after-rounds",
      priorityChannels: 2,
      compression: "zstd",
    },
  ],
] as const) {
  test(`16, 18: the guest runs before its memory is there, and ends exact: ${name} (SEED=${seed})`, async () => {
    const leaks = new LeakCheck();
    const checksum = name.includes("checksum");
    const { guest, to, phases, destination, source } = await moves(options, {
      shared: { checksum },
    });
    expect(phases.at(-1)).toBe("postcopy");
    expect(destination.faults?.count).toBeGreaterThan(0);
    expect(source.channels.filter(({ lane }) => lane === "priority")).toHaveLength(
      "priorityChannels" in options ? 2 : 1,
    );
    await guest.stop();
    await to.discard();
    await leaks.settled();
  });
}

for (const [name, options] of [
  ["plain", {}],
  ["preempt/plain", { priorityChannels: 4 }],
  ["tcp/plain/zstd", { compression: "zstd" }],
] as const satisfies readonly [string, MigrateOutOptions][]) {
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
  const guest = await created(busyShape());
  await guest.run();
  await untilWritten(guest, 100);
  const out = { postcopy: "after-rounds", channels: 4, downtimeLimitMs: 1 } as const;
  const first = new MemoryGuestDestination({ vcpuThreads: 2 });
  onTestFinished(() => first.discard());
  const abort = new AbortController();
  const onPhase = (phase: string) => void (phase === "precopy" && abort.abort());
  const cancelled = await migratePair({
    source: guest,
    destination: first,
    out: { ...out, signal: abort.signal, onPhase },
  });
  expect(verdictsOf(cancelled)).toEqual({
    source: "CANCELLED at source",
    destination: "CANCELLED at source",
  });
  expect([guest.running, guest.tracking]).toEqual([true, false]);
  const second = new MemoryGuestDestination({ vcpuThreads: 2 });
  onTestFinished(() => second.discard());
  const { source, destination } = await migratePair({ source: guest, destination: second, out });
  expect([source.failure, destination.failure]).toEqual([null, null]);
  expect(destination.report?.faults?.count).toBeGreaterThan(0);
  expect([guest.running, second.guest.running]).toEqual([false, true]);
  await second.guest.pause();
  expect(await second.guest.verify()).toEqual([]);
});

test(`21: multifd+postcopy/xbzrle: a page that was dirty but is as it was sent comes, too (SEED=${seed})`, async () => {
  const shape = busyShape();
  const guest = await created(shape);
  await guest.run();
  await untilWritten(guest, 100);
  await guest.pause();
  // Everything counts as written again, and nothing was.
  const pause = guest.pause.bind(guest);
  const logs = await guest.startDirtyLog();
  const marks = async () => {
    await pause();
    for (const { words, summary } of logs) for (const each of [words, summary]) each.fill(-1);
  };
  Object.assign(guest, { pause: marks });
  const to = new MemoryGuestDestination({ vcpuThreads: shape.vcpus.length });
  onTestFinished(() => to.discard());
  const { source, destination } = await migratePair({
    source: guest,
    destination: to,
    out: { postcopy: "after-rounds", xbzrle: true, ...RECOVERS_NOT },
    in: RECOVERS_NOT,
  });
  expect([source.failure, destination.failure]).toEqual([null, null]);
  await to.guest.pause();
  expect(await to.guest.verify()).toEqual([]);
});

test(`16: both ends tell how long who waited for pages, and the figures belong together (SEED=${seed})`, async () => {
  // So slow that the guest has to ask often.
  const { source, destination, told } = await moves({
    postcopy: "after-rounds",
    maxBandwidthBytesPerSecond: 48 * MIB,
  });
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
  const postcopySwitch = new PostcopySwitch();
  const { phases } = await moves({
    postcopy: "manual",
    postcopySwitch,
    maxRounds: 1000,
    maxBandwidthBytesPerSecond: 64 * MIB,
    onProgress: () => postcopySwitch.start(),
  });
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
  const shape = busyShape();
  const guest = await MemoryGuest.create(shape);
  onTestFinished(() => guest.stop());
  const to = new MemoryGuestDestination({ vcpuThreads: 2 });
  onTestFinished(() => to.discard());
  await guest.run();
  const address = Promise.withResolvers<string>();
  const arriving = outcomeOf(
    migrateIn(to, "tcp:127.0.0.1:0", {
      onListening: address.resolve,
      channelTimeoutMs: 2000,
      recoverTimeoutMs: 200,
    }),
  );
  await using relay = await Relay.start();
  // What is missing has begun to come, and the rest never will.
  relay.at({ channel: 1, frame: "end", where: "before" }, "cut link");
  const leaving = outcomeOf(
    migrateOut(guest, relay.before(await address.promise), {
      channels: 2,
      postcopy: "after-rounds",
      channelTimeoutMs: 2000,
      stepTimeoutMs: 5000,
      recoverTimeoutMs: 200,
    }),
  );
  const outcomes = await Promise.all([leaving, arriving]);
  expect(outcomes.map(({ failure }) => failure?.code)).toEqual([
    "POSTCOPY_INTERRUPTED",
    "POSTCOPY_INTERRUPTED",
  ]);
  // The source's guest stays paused, and vCPUs that wait for a page still follow orders.
  expect([guest.running, to.guest.running]).toEqual([false, true]);
  await to.guest.pause();
  expect(to.guest.running).toBe(false);
});

const PAUSED = "paused";

/** Keeps a guest paused that comes as one which was, as a host of QEMU does. */
class KeepsPaused extends MemoryGuestDestination {
  #isPaused = false;

  override async loadDevices(sections: readonly DeviceSection[]): Promise<void> {
    const others = sections.filter(({ name }) => name !== PAUSED);
    this.#isPaused = others.length < sections.length;
    await super.loadDevices(others);
  }

  override async resume(): Promise<void> {
    if (!this.#isPaused) await super.resume();
  }
}

/** It ran, and has written. Its devices tell that it is paused. */
async function pausedGuest(shape: GuestShape): Promise<MemoryGuest> {
  const guest = await created(shape);
  await guest.run();
  await untilWritten(guest, 100);
  await guest.pause();
  const save = guest.saveDevices.bind(guest);
  const paused = { name: PAUSED, bytes: new Uint8Array() };
  return Object.assign(guest, { saveDevices: async () => [...(await save()), paused] });
}

for (const [when, isEarly] of [
  ["when all its memory is there", false],
  ["while its memory comes", true],
] as const) {
  test(`17: postcopy/suspend: a guest that was paused is paused there, and wakes ${when} (SEED=${seed})`, async () => {
    const shape = busyShape();
    const guest = await pausedGuest(shape);
    const written = guest.writtenPages;
    const to = new KeepsPaused({ vcpuThreads: shape.vcpus.length });
    onTestFinished(() => to.discard());
    const postcopySwitch = new PostcopySwitch();
    const seen: boolean[] = [];
    let woken: Promise<void> | undefined;
    const { source, destination } = await migratePair({
      source: guest,
      destination: to,
      out: {
        postcopy: "manual",
        postcopySwitch,
        maxBandwidthBytesPerSecond: 32 * MIB,
        // In the first round: a guest that writes nothing would have nothing missing after it.
        onPhase: (phase) => void (phase === "precopy" && postcopySwitch.start()),
      },
      in: {
        onPhase: (phase) => {
          if (phase !== "postcopy") return;
          seen.push(to.guest.running);
          if (isEarly) woken = to.guest.run();
        },
      },
    });
    await woken;
    expect([source.failure, destination.failure]).toEqual([null, null]);
    expect([guest.writtenPages, guest.running]).toEqual([written, false]);
    expect([...seen, to.guest.running]).toEqual([false, isEarly]);
    // Who sleeps waits for nothing.
    expect((destination.report?.faults?.count ?? -1) > 0).toBe(isEarly);
    if (!isEarly) {
      expect(to.guest.writtenPages).toBe(0);
      expect(await to.guest.verify()).toEqual([]);
      await to.guest.run();
    }
    await untilWritten(to.guest, 100);
    await to.guest.pause();
    expect(await to.guest.verify()).toEqual([]);
  });
}
