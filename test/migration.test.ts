import { beforeAll, expect, onTestFinished, test } from "vitest";
import { type Clock, useClock } from "../base/clock.ts";
import { GIB, KIB, MIB } from "../base/units.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import { DESTINATION_PHASES, migrateIn } from "../engine/destination.ts";
import { LiveParameters } from "../engine/live-parameters.ts";
import { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import { migrateOut, SOURCE_PHASES } from "../engine/source.ts";
import type { Progress, Report } from "../engine/statistics.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { allocate, blockNamed, bytesOf, difference, SMALL_GUEST } from "./harness/guest-memory.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { migratePair, outcomeOf, type PairOutcome } from "./harness/pair.ts";
import { pristine, RecordingDestination, used } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

beforeAll(warmUp);

function reportsOf({ source, destination }: PairOutcome): [Report, Report] {
  if (source.report === null || destination.report === null) throw new Error("It did not complete");
  return [source.report, destination.report];
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** Moves a guest of such blocks, exactly. */
async function moves(
  shape: readonly BlockAnnouncement[],
  provide: typeof pristine = pristine,
  options: { chunkBytes?: number; channels?: number } = {},
): Promise<[Report, Report]> {
  const source = new RecordingSource({ seed, shape });
  source.onLook = () => source.writePages(5);
  source.onPause = () => source.writePages(20);
  const destination = new RecordingDestination(provide);
  const { chunkBytes = 2 * MIB, channels = 2 } = options;
  const outcome = await migratePair({
    source,
    destination,
    out: { chunkBytes, channels },
    in: { chunkBytes },
  });
  expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
  return reportsOf(outcome);
}

for (const kind of ["tcp", "unix"] as const) {
  for (const channels of [1, 2, 4]) {
    for (const checksum of [false, true]) {
      const path = `${kind}×${channels}${checksum ? "/checksum" : ""}`;
      test(`a running guest arrives exactly and goes on there: ${path} (SEED=${seed})`, async () => {
        const rig = new FaultRig(seed);
        await rig.succeeds({ kind, out: { channels, checksum }, in: { checksum } });
        expect(rig.source.calls).toEqual(["startDirtyLog", "pause", "saveDevices"]);
        expect(rig.destination.calls).toEqual(["prepare", "loadDevices", "resume"]);
      });
    }
  }
}

for (const chunkBytes of [128 * KIB, 1 * MIB, 1 * GIB]) {
  test(`chunks may be ${chunkBytes / KIB} KiB (SEED=${seed})`, async () => {
    await moves(SMALL_GUEST, pristine, { chunkBytes });
  });
}

test(`memory that was used before holds the guest and nothing else (SEED=${seed})`, async () => {
  const [report] = await moves(SMALL_GUEST, used);
  expect(report.pages.zero).toBeGreaterThan(0);
  expect(report.pages.untouched).toBe(0);
});

test(`zero pages do not touch memory that was never used (SEED=${seed})`, async () => {
  const [report, theirs] = await moves(SMALL_GUEST);
  expect(report.pages.untouched).toBeGreaterThan(0);
  expect(report.pages.untouched).toBeLessThanOrEqual(report.pages.zero);
  expect(theirs.pages.untouched).toBe(report.pages.untouched);
});

const SHAPES: Readonly<Record<string, readonly BlockAnnouncement[]>> = {
  "a single page": [{ name: "page", sizeBytes: 4 * KIB, pageBytes: 4 * KIB }],
  "33 blocks of a few pages each": Array.from({ length: 33 }, (_, index) => ({
    name: `block/${index}`,
    sizeBytes: (index + 1) * 4 * KIB,
    pageBytes: 4 * KIB,
  })),
  "names of many bytes": [
    { name: "ä".repeat(127), sizeBytes: 64 * KIB, pageBytes: 4 * KIB },
    { name: "a b\tc", sizeBytes: 64 * KIB, pageBytes: 4 * KIB },
  ],
  "pages of 16 and 64 KiB": [
    { name: "16k", sizeBytes: 3 * MIB + 16 * KIB, pageBytes: 16 * KIB },
    { name: "64k", sizeBytes: 3 * MIB + 64 * KIB, pageBytes: 64 * KIB },
  ],
  "huge pages of 128 KiB and 2 MiB": [
    { name: "128k", sizeBytes: 3 * MIB + 128 * KIB, pageBytes: 128 * KIB },
    { name: "2m", sizeBytes: 6 * MIB, pageBytes: 2 * MIB },
  ],
};

for (const [what, shape] of Object.entries(SHAPES)) {
  test(`a guest may have ${what} (SEED=${seed})`, async () => {
    await moves(shape);
    await moves(shape, used, { channels: 4, chunkBytes: 128 * KIB });
  });
}

test(`one written byte in a page of 1 GiB does not send a gigabyte of zeros (SEED=${seed})`, async () => {
  const shape = [{ name: "giant", sizeBytes: GIB, pageBytes: GIB }];
  const source = new RecordingSource({ seed, blocks: allocate(shape) });
  const offsets = [5, GIB / 2 + 4095, GIB - 1];
  for (const offset of offsets)
    bytesOf(blockNamed(source.blocks, "giant"))[offset] = 1 + (offset % 250);
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination });
  const [report] = reportsOf(outcome);
  expect(report.pages).toMatchObject({ raw: 3, zero: GIB / (4 * KIB) - 3 });
  expect(report.sentBytes).toBeLessThan(MIB);
  const arrived = bytesOf(blockNamed(destination.blocks ?? [], "giant"));
  for (const offset of offsets) expect(arrived[offset]).toBe(1 + (offset % 250));
});

test(`page sizes of the hosts may differ, and the order of their blocks (SEED=${seed})`, async () => {
  const shape = [
    { name: "small", sizeBytes: 6 * MIB, pageBytes: 4 * KIB },
    { name: "huge", sizeBytes: 4 * MIB, pageBytes: 2 * MIB },
  ];
  await moves(shape, (announced) =>
    pristine(announced)
      .map((block) => ({ ...block, pageBytes: block.name === "huge" ? 4 * KIB : 2 * MIB }))
      .toReversed(),
  );
});

test(`pages written between rounds are sent again, and the last version arrives (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const out = { downtimeLimitMs: 1, maxRounds: 5, nonConvergence: "switch-over" } as const;
  const outcome = await rig.succeeds({ out });
  const [report] = reportsOf(outcome);
  expect(report.rounds).toHaveLength(6);
  const guestPages = report.guestBytes / (4 * KIB);
  expect(report.rounds[0]).toMatchObject({ dirtyPages: guestPages, sentPages: guestPages });
  for (const round of report.rounds.slice(1)) expect(round.sentPages).toBeGreaterThan(0);
});

test(`a round ends when the destination has applied it, so that its time is the link's (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const seen: string[] = [];
  for (const [channel, frame, nth] of [
    [1, "fence", 2],
    [1, "fenced", 2],
    [0, "round", 1],
    [1, "fence", 3],
    [1, "fenced", 3],
    [0, "round", 2],
    [1, "end", 1],
  ] as const) {
    relay.at({ channel, frame, nth, where: "before" }, () => seen.push(`${frame} ${nth}`));
  }
  const rig = new FaultRig(seed);
  await rig.attempt({ relay, out: { channels: 1 } });
  rig.expectArrived();
  expect(seen.slice(0, 6)).toEqual([
    "fence 2",
    "fenced 2",
    "round 1",
    "fence 3",
    "fenced 3",
    "round 2",
  ]);
  expect(seen).toContain("end 1");
});

test(`a guest that nobody writes needs no dirty log (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed });
  source.running = false;
  source.startDirtyLog = async () => [];
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination });
  expect(verdictsOf(outcome).source).toBe("completed");
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
});

test(`a guest moves on and on (SEED=${seed})`, async () => {
  let source = new RecordingSource({ seed });
  const first = source;
  for (let hop = 0; hop < 3; hop += 1) {
    source.onLook = () => source.writePages(5);
    const destination = new RecordingDestination();
    const outcome = await migratePair({ source, destination });
    expect(verdictsOf(outcome).destination).toBe("completed");
    const blocks = destination.blocks ?? [];
    expect(difference(source.blocks, blocks)).toBe(null);
    source = new RecordingSource({ seed: (seed ^ hop) >>> 0, blocks });
  }
  expect(difference(first.blocks, source.blocks)).not.toBe(null);
});

test(`several guests move at the same time without mixing (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  await Promise.all(
    [1, 2, 3].map(async (number) => {
      const source = new RecordingSource({ seed: (seed ^ number) >>> 0 });
      const destination = new RecordingDestination();
      const outcome = await migratePair({ source, destination, out: { channels: 1 } });
      expect(verdictsOf(outcome).destination).toBe("completed");
      expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
    }),
  );
  await leaks.settled();
});

test(`the figures of a report belong together (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const out = {
    channels: 3,
    downtimeLimitMs: 1,
    maxRounds: 3,
    nonConvergence: "switch-over",
  } as const;
  const [ours, theirs] = reportsOf(await rig.succeeds({ out }));
  for (const report of [ours, theirs]) {
    expect(report.guestBytes).toBe(sum(SMALL_GUEST.map(({ sizeBytes }) => sizeBytes)));
    expect(sum(report.channels.map(({ sentBytes }) => sentBytes))).toBe(report.sentBytes);
    expect(sum(Object.values(report.downtime))).toBeCloseTo(report.downtimeMs, 6);
    expect(report.downtimeMs).toBeLessThan(report.totalMs);
    expect(report.channels.map(({ id, lane }) => [id, lane])).toEqual([
      [0, "main"],
      [1, "bulk"],
      [2, "bulk"],
      [3, "bulk"],
    ]);
    const { zero, unchanged, delta, compressed, raw } = report.pages;
    const sentPages = sum(report.rounds.map((round) => round.sentPages));
    expect(zero + unchanged + delta + compressed + raw).toBe(sentPages);
    for (const round of report.rounds) {
      expect(round.sentPages).toBe(round.dirtyPages);
      expect(round.elapsedMs).toBeGreaterThan(0);
    }
    // Beside the pages of the rounds there are only frames without pages.
    const bulkBytes = report.sentBytes - (report.channels[0]?.sentBytes ?? 0);
    const roundBytes = sum(report.rounds.map((round) => round.sentBytes));
    expect(bulkBytes - roundBytes).toBeLessThan(3 * 100);
    expect(bulkBytes).toBeGreaterThanOrEqual(roundBytes);
    expect(report.cpuMs).toBeGreaterThan(0);
  }
  // What both ends know is the same at both.
  const shared = ({ totalMs, downtime, rounds, guestBytes, sentBytes, pages }: Report) => {
    return { totalMs, downtime, rounds, guestBytes, sentBytes, pages };
  };
  expect(shared(theirs)).toEqual(shared(ours));
  expect(theirs.downtimeMs).toBeCloseTo(ours.downtimeMs, 6);
  expect(theirs.channels.map(({ sentBytes }) => sentBytes)).toEqual(
    ours.channels.map(({ sentBytes }) => sentBytes),
  );
});

test(`both ends go through their phases in order (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const [ours, theirs]: [string[], string[]] = [[], []];
  await rig.succeeds({
    out: { onPhase: (phase) => ours.push(phase) },
    in: { onPhase: (phase) => theirs.push(phase) },
  });
  expect(ours).toEqual(SOURCE_PHASES);
  expect(theirs).toEqual(DESTINATION_PHASES);
});

test(`progress is told at both ends, and it never goes back (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const told = { out: [] as Progress[], in: [] as Progress[] };
  // The guest comes to rest only after both ends have told it, the source also of the pause.
  const enough = Promise.withResolvers<void>();
  rig.source.misbehave("pause", async (act) => {
    await enough.promise;
    return await act();
  });
  const listen = (end: "out" | "in") => (progress: Progress) => {
    told[end].push(progress);
    const isPauseTold = told.out.some(({ phase }) => phase === "pause");
    if (isPauseTold && told.out.length >= 2 && told.in.length >= 2) enough.resolve();
  };
  const { source } = await rig.succeeds({
    out: { onProgress: listen("out") },
    in: { onProgress: listen("in") },
  });
  for (const [end, phase] of [
    ["out", "pause"],
    ["in", "receive"],
  ] as const) {
    const last = told[end].at(-1);
    expect(last?.totalBytes).toBe(source.report?.guestBytes);
    expect(told[end].map((progress) => progress.phase)).toContain(phase);
    for (const field of ["sentBytes", "elapsedMs", "round"] as const) {
      const values = told[end].map((progress) => progress[field]);
      expect(values).toEqual(values.toSorted((left, right) => left - right));
    }
  }
  const atRest = told.out.find((progress) => progress.phase === "pause");
  expect(atRest?.expectedDowntimeMs).toBeGreaterThan(0);
  expect(atRest?.sentBytes).toBeGreaterThan(0);
});

test(`what is dirty is told in the same pages before threads count them (SEED=${seed})`, async () => {
  const shape = [{ name: "ram", sizeBytes: 8 * MIB, pageBytes: 2 * MIB }];
  const told: number[] = [];
  onTestFinished(useClock(lookingAtOnce()));
  const outcome = await migratePair({
    source: new RecordingSource({ seed, shape }),
    destination: new RecordingDestination(),
    out: { onProgress: ({ dirtyPages }) => told.push(dirtyPages) },
  });
  expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
  expect(told[0]).toBe((8 * MIB) / (4 * KIB));
});

test(`the round is 0 before the first, and at the source the last one from then on (SEED=${seed})`, async () => {
  const told = { out: [] as Progress[], in: [] as Progress[] };
  const source = new RecordingSource({ seed });
  source.onLook = () => source.writePages(20);
  const isTold = Promise.withResolvers<void>();
  source.misbehave("saveDevices", async (act) => {
    await isTold.promise;
    return await act();
  });
  const onProgress = (progress: Progress): void => {
    told.out.push(progress);
    if (progress.phase === "devices") isTold.resolve();
  };
  onTestFinished(useClock(lookingAtOnce()));
  const outcome = await migratePair({
    source,
    destination: new RecordingDestination(),
    out: { onProgress, maxRounds: 3, downtimeLimitMs: 1, nonConvergence: "switch-over" },
    in: { onProgress: (progress) => told.in.push(progress) },
  });
  expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
  expect([told.out[0]?.round, told.in[0]?.round]).toEqual([0, 0]);
  const last = told.out.find(({ phase }) => phase === "devices");
  expect(last?.round).toBe(outcome.source.report?.rounds.length);
});

test(`a destination tells nothing of what is dirty (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed });
  const isTold = Promise.withResolvers<void>();
  source.misbehave("saveDevices", async (act) => {
    await isTold.promise;
    return await act();
  });
  const told: number[][] = [];
  const onProgress = ({ round, dirtyPages, dirtyBytes }: Progress): void => {
    told.push([dirtyPages, dirtyBytes]);
    if (round > 1) isTold.resolve();
  };
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination, in: { onProgress } });
  expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
  expect(new Set(told.flat())).toEqual(new Set([0]));
});

/** What is done every so often is done for the first time at once. */
function lookingAtOnce(): Clock {
  return {
    nowMs: () => Number(process.hrtime.bigint() / 1000n) / 1000,
    cpuMs: () => 0,
    after(ms, call) {
      const timer = setTimeout(call, ms);
      return () => clearTimeout(timer);
    },
    every(ms, call) {
      call();
      const timer = setInterval(call, ms);
      return () => clearInterval(timer);
    },
  };
}

test(`parameters change while the migration runs, and only then (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const live = new LiveParameters();
  expect(() => live.change({ maxRounds: 7 })).toThrow(RangeError);
  const problems: unknown[] = [];
  // Without the change, neither the rounds nor the pause would ever do.
  rig.source.onLook = () => {
    rig.source.writePages(50);
    try {
      live.change({ channels: 3 });
    } catch (error) {
      problems.push(error);
    }
    for (const change of [null, 5, "faster", []]) {
      expect(() => live.change(change as never)).toThrow("a change must be an object");
    }
    live.change({ downtimeLimitMs: 60_000, maxBandwidthBytesPerSecond: 10 * GIB });
  };
  await rig.succeeds({ out: { live, downtimeLimitMs: 1, maxRounds: 1000 } });
  expect(problems[0]).toMatchObject({ code: "CONFIGURATION_INVALID" });
  expect(() => live.change({ maxRounds: 7 })).toThrow(RangeError);
});

test(`a limit of bandwidth slows the channels, not what arrives (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  // More than the guest has in the time that the limit lets pass at once.
  const out = { channels: 2, maxBandwidthBytesPerSecond: 100 * MIB, downtimeLimitMs: 5000 };
  const [report] = reportsOf(await rig.succeeds({ out }));
  const [, ...bulk] = report.channels;
  expect(sum(bulk.map(({ waitMs }) => waitMs))).toBeGreaterThan(0);
});

test("a configuration that cannot be is refused with all its problems, and nothing is touched", async () => {
  const source = new RecordingSource({ seed: 1 });
  const destination = new RecordingDestination();
  const wrong = { channels: 0, chunkBytes: 3, autoConverge: true };
  const out = await outcomeOf(migrateOut(source, "tcp:nowhere", wrong));
  expect(out.failure).toMatchObject({ code: "CONFIGURATION_INVALID" });
  for (const named of ["tcp:nowhere", "channels", "chunkBytes", "autoConverge"]) {
    expect(out.failure?.message).toContain(named);
  }
  const into = await outcomeOf(migrateIn(destination, "pigeon:post", { stepTimeoutMs: -1 }));
  expect(into.failure?.message).toMatch(/pigeon:post.*stepTimeoutMs/s);
  const nowhere = await outcomeOf(migrateOut(source, undefined as unknown as string));
  expect(nowhere.failure?.message).toContain('address "undefined" must be');
  expect([...source.calls, ...destination.calls]).toEqual([]);
});

test(`a guest that is leaving cannot leave once more, and can when it stayed (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const second = Promise.withResolvers<Awaited<ReturnType<typeof outcomeOf>>>();
  rig.source.misbehave("saveDevices", async () => {
    second.resolve(await outcomeOf(migrateOut(rig.source, "tcp:127.0.0.1:1")));
    throw new Error("it stays");
  });
  await rig.fails();
  const { failure } = await second.promise;
  expect(failure).toMatchObject({ code: "CONFIGURATION_INVALID" });
  expect(failure?.message).toContain("is leaving already");
  await rig.succeeds();
});

test(`a host that waits for a guest takes no second one in meanwhile (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const second = Promise.withResolvers<Awaited<ReturnType<typeof outcomeOf>>>();
  rig.destination.misbehave("loadDevices", async () => {
    second.resolve(await outcomeOf(migrateIn(rig.destination, "tcp:127.0.0.1:0")));
    throw new Error("it is not taken");
  });
  await rig.fails();
  const { failure } = await second.promise;
  expect(failure).toMatchObject({ code: "CONFIGURATION_INVALID" });
  expect(failure?.message).toContain("takes a guest in already");
  await rig.succeeds();
});

test(`what steers a migration steers no second one meanwhile (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const live = new LiveParameters();
  const recovery = new PostcopyRecovery();
  const others: Awaited<ReturnType<typeof outcomeOf>>[] = [];
  rig.source.misbehave("saveDevices", async (act) => {
    const source = new RecordingSource({ seed });
    const destination = new RecordingDestination();
    others.push(await outcomeOf(migrateOut(source, "tcp:127.0.0.1:1", { live })));
    others.push(await outcomeOf(migrateIn(destination, "tcp:127.0.0.1:0", { recovery })));
    expect([...source.calls, ...destination.calls]).toEqual([]);
    return await act();
  });
  await rig.succeeds({ out: { live }, in: { recovery } });
  for (const { failure } of others) {
    expect(failure?.code).toBe("CONFIGURATION_INVALID");
    expect(failure?.message).toContain("of one migration at a time");
  }
  expect(others).toHaveLength(2);
  await rig.succeeds({ out: { live }, in: { recovery } });
});

test("what is no host and no option is refused with all that is wrong with it", async () => {
  const wrong = { signal: 5, onPhase: "loudly", live: {}, recovery: null, threads: 4 };
  const out = await outcomeOf(
    migrateOut({ blocks: 1 } as never, "tcp:127.0.0.1:1", wrong as never),
  );
  expect(out.failure).toMatchObject({ code: "CONFIGURATION_INVALID", facts: {} });
  for (const says of [
    ...['needs a method "pause"', 'needs a method "saveDevices"', 'needs an array "blocks"'],
    ...['"signal" must be one of AbortSignal', '"onPhase" must be a function'],
    ...['"live" must be one of LiveP', '"recovery" must be one of Post', '"threads" must be one'],
  ]) {
    expect(out.failure?.message).toContain(says);
  }
  for (const given of [
    migrateOut(null as never, "tcp:127.0.0.1:1"),
    migrateIn({} as never, "tcp:127.0.0.1:0"),
    migrateIn({ ...new RecordingDestination(), takeFaults: 5 } as never, "tcp:127.0.0.1:0"),
    migrateIn(new RecordingDestination(), "tcp:127.0.0.1:0", null as never),
    migrateIn(new RecordingDestination(), "tcp:127.0.0.1:0", { recovery: {} } as never),
  ]) {
    expect((await outcomeOf(given)).failure).toMatchObject({ code: "CONFIGURATION_INVALID" });
  }
});

test("blocks that cannot be are refused before anything is touched", async () => {
  const block = { name: "ram", sizeBytes: 8 * KIB, pageBytes: 4 * KIB };
  const [good] = allocate([block]);
  if (good === undefined) throw new Error("There is one block");
  for (const [blocks, says] of [
    [[], /at least one block/],
    [[good, good], /twice/],
    [[{ ...good, sizeBytes: 5000 }], /whole pages/],
    [[{ ...good, pageBytes: 512 }], /page size/],
    [[{ ...good, name: "" }], /needs a name/],
    [[{ ...good, sizeBytes: 1 * MIB }], /larger than its SharedArrayBuffer/],
    [[{ ...good, sizeBytes: "8192" }], /whole pages/],
    [[{ ...good, name: "\ud800" }], /UTF-8/],
    [[{ ...good, place: undefined }], /a place of kind/],
    [[{ ...good, place: { kind: "device", path: "/dev/mem" } }], /a place of kind/],
    [[{ ...good, place: { kind: "shared", buffer: new ArrayBuffer(8 * KIB) } }], /a SharedArrayB/],
    [[{ ...good, place: { kind: "file", offset: 0 } }], /the path of its file/],
    [[{ ...good, place: { kind: "file", path: "/dev/shm/a", offset: -1 } }], /the offset/],
  ] as const) {
    const source = new RecordingSource({ seed: 1, blocks: blocks as readonly Block[] });
    const { failure } = await outcomeOf(migrateOut(source, "tcp:127.0.0.1:1"));
    expect(failure).toMatchObject({ code: "CONFIGURATION_INVALID" });
    expect(failure?.message).toMatch(says);
    expect(source.calls).toEqual([]);
  }
});
