import { beforeAll, expect, test, vi } from "vitest";
import { MIB } from "../base/units.ts";
import { rewrittenGuest, TouchedGuest } from "../bench/touched-guest.ts";
import { rehearseCoordinator } from "../engine/coordinator-rehearsal.ts";
import { migrateIn } from "../engine/destination.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";
import { PARAMETERS } from "../engine/parameters.ts";
import { atOnce, ReadyThreads } from "../engine/ready-threads.ts";
import { migrateOut } from "../engine/source.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { throws } from "./harness/misbehaviour.ts";
import { migratePair, outcomeOf } from "./harness/pair.ts";
import { ThreadWatch } from "./harness/thread-watch.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

vi.mock(import("../engine/coordinator-rehearsal.ts"), { spy: true });

const seed = seedFromEnvironment();

/** Nobody listens there. */
const NOBODY = "tcp:127.0.0.1:1";

beforeAll(warmUp);

test(`a migration takes ready threads, starts those that are wanting, and gives back what there was (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  {
    using watch = new ThreadWatch();
    await using threads = new ReadyThreads("source", 2);
    await using others = new ReadyThreads("destination", 4);
    expect(await watch.all()).toHaveLength(6);
    // Three are wanted each time, at both ends: one more than there are at the source.
    for (const all of [7, 8]) {
      const rig = new FaultRig(seed);
      const outcome = await rig.attempt({ out: { channels: 3, threads }, in: { threads: others } });
      expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
      rig.expectArrived();
      expect(await watch.all()).toHaveLength(all);
      expect([threads.count, others.count]).toEqual([2, 4]);
    }
  }
  await leaks.settled();
});

test(`threads that were given back serve the next migration, whatever the last one was (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  {
    using watch = new ThreadWatch();
    await using threads = new ReadyThreads("source", 2);
    await using others = new ReadyThreads("destination", 2);
    await Promise.all([threads.started(), others.started()]);
    for (const out of [
      { xbzrle: true, xbzrleCacheBytes: 8 * MIB, compression: "zstd" },
      { checksum: true },
      { compression: "auto", cpuLimitCores: 1 },
      {},
    ] as const) {
      const rig = new FaultRig(seed);
      const checksum = "checksum" in out;
      const options = {
        out: { ...out, channels: 2, threads },
        in: { checksum, threads: others },
      };
      // One that is broken off, with pages on their way, and one that is not.
      rig.source.misbehave("pause", throws);
      const broken = verdictsOf(await rig.fails(options));
      expect(broken.source).toBe("HOST_FAILED at source");
      await rig.succeeds(options);
    }
    expect(await watch.all()).toHaveLength(4);
  }
  await leaks.settled();
});

test(`threads of priority channels serve one post-copy after another (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  {
    using watch = new ThreadWatch();
    await using threads = new ReadyThreads("source", 1, { lanes: 1 });
    await using others = new ReadyThreads("destination", 1, { lanes: 1 });
    const shape = { bytes: 4 * MIB, pageBytes: 4096 };
    for (const channels of [1, 2, 1]) {
      const [from, to] = [new SharedArrayBuffer(shape.bytes), new SharedArrayBuffer(shape.bytes)];
      new Prng(seed + channels).bytes(new Uint8Array(from));
      const phases: string[] = [];
      const { source, destination } = await migratePair({
        source: rewrittenGuest(from, shape),
        destination: new TouchedGuest(to, { faults: 0, pauseMs: 0 }),
        out: {
          channels,
          threads,
          postcopy: "after-rounds",
          onPhase: (phase) => phases.push(phase),
        },
        in: { threads: others },
      });
      expect([source.failure, destination.failure]).toEqual([null, null]);
      expect(phases).toContain("postcopy");
      expect(Buffer.from(to).equals(Buffer.from(from))).toBe(true);
      expect([threads.count, threads.lanes.count]).toEqual([1, 1]);
      expect([others.count, others.lanes.count]).toEqual([1, 1]);
    }
    // Four, and once one more for a second channel at each end.
    expect(await watch.all()).toHaveLength(6);
  }
  await leaks.settled();
});

function guestInFile(path: string): SourceHost {
  const guest = rewrittenGuest(new SharedArrayBuffer(MIB), { bytes: MIB, pageBytes: 4096 });
  const place = { kind: "file", path, offset: 0 } as const;
  return { ...guest, blocks: guest.blocks.map((block) => ({ ...block, place })) };
}

test.for([
  ["they are for one migration", { isForOne: true }],
  ["their owner closes them meanwhile", { isClosed: true }],
  ["one could not open its memory", { path: "/there/is/no/such/file" }],
] as const)("threads that a migration has end with it where %s", async ([, how]) => {
  const leaks = new LeakCheck();
  {
    using watch = new ThreadWatch();
    await using threads = new ReadyThreads("source", 1, { isForOne: "isForOne" in how });
    const { source, destination } = new FaultRig(seed);
    if ("isClosed" in how) source.onPause = () => void threads.close();
    const host = "path" in how ? guestInFile(how.path) : source;
    const outcome = await migratePair({ source: host, destination, out: { channels: 1, threads } });
    const wanted = "path" in how ? "MEMORY_UNUSABLE at source" : "completed";
    expect(verdictsOf(outcome).source).toBe(wanted);
    expect(await watch.all()).toHaveLength(1);
    expect(threads.count).toBe(0);
  }
  await leaks.settled();
});

test("ready threads outlive an attempt that does not need them, and end with their owner", async () => {
  const { source } = new FaultRig(seed);
  const leaks = new LeakCheck();
  {
    await using threads = new ReadyThreads("source", 2);
    const moving = migrateOut(source, NOBODY, { threads, connectTimeoutMs: 100 });
    await expect(moving).rejects.toMatchObject({ code: "CONNECT_FAILED" });
    expect(threads.count).toBe(2);
  }
  await leaks.settled();
});

/** The same, for a guest that never runs before its memory is there. */
function withoutFaults(host: DestinationHost): DestinationHost {
  return {
    prepare: (...given) => host.prepare(...given),
    loadDevices: (...given) => host.loadDevices(...given),
    resume: () => host.resume(),
    discard: () => host.discard(),
  };
}

test("who waits for a guest has threads ready, a priority channel's where it may come before its memory", async () => {
  const leaks = new LeakCheck();
  const guest = new TouchedGuest(new SharedArrayBuffer(MIB), { faults: 0, pauseMs: 0 });
  const counts: number[] = [];
  for (const host of [guest, withoutFaults(guest)]) {
    using watch = new ThreadWatch();
    const cancel = new AbortController();
    const listening = Promise.withResolvers<string>();
    const options = { signal: cancel.signal, onListening: listening.resolve };
    const arriving = outcomeOf(migrateIn(host, "tcp:127.0.0.1:0", options));
    await listening.promise;
    counts.push((await watch.all()).length);
    cancel.abort();
    expect((await arriving).failure?.code).toBe("CANCELLED");
  }
  const channels = atOnce(PARAMETERS.channels.default);
  expect(counts).toEqual([channels + 1, channels]);
  await leaks.settled();
});

test("the coordinator rehearses when its threads have, and they are ready after that, also where it fails", async () => {
  const rehearsing = Promise.withResolvers<void>();
  const rehearse = vi.mocked(rehearseCoordinator).mockReset();
  rehearse.mockReturnValueOnce(rehearsing.promise);
  await using threads = new ReadyThreads("source", 1);
  let isReady = false;
  const started = threads.started().then(() => {
    isReady = true;
  });
  await threads.pages.started();
  await vi.waitUntil(() => rehearse.mock.calls.length > 0);
  expect(isReady).toBe(false);
  rehearsing.reject(new Error("not here"));
  await started;
});

test.for(["take", "close"] as const)(
  "a rehearsal of the coordinator is over when threads are wanted, or none any more: %s",
  async (what) => {
    const rehearsing = Promise.withResolvers<void>();
    const rehearse = vi.mocked(rehearseCoordinator).mockReset();
    rehearse.mockReturnValueOnce(rehearsing.promise);
    await using threads = new ReadyThreads("source", 1);
    await vi.waitUntil(() => rehearse.mock.calls.length > 0, 20_000);
    const cancelled = rehearse.mock.lastCall?.[0];
    expect(cancelled?.aborted).toBe(false);
    const taken = what === "take" ? threads.pages.take() : null;
    let isClosed = false;
    const close = async (): Promise<void> => {
      await threads.close();
      isClosed = true;
    };
    const closed = what === "close" ? close() : null;
    expect(cancelled?.aborted).toBe(true);
    await taken?.end(0);
    expect(isClosed).toBe(false);
    rehearsing.resolve();
    await closed;
  },
);

test("the coordinator does not rehearse for threads that are wanted at once, or for none", async () => {
  const rehearse = vi.mocked(rehearseCoordinator).mockReset();
  await using threads = new ReadyThreads("source", 1);
  await using none = new ReadyThreads("source", 0, { lanes: 1 });
  const taken = threads.pages.take();
  await Promise.all([threads.started(), none.started()]);
  expect(rehearse).not.toHaveBeenCalled();
  await taken?.end(0);
});

test("threads that are ready for the other end are refused before anything is touched", async () => {
  const { source } = new FaultRig(seed);
  await using threads = new ReadyThreads("destination", 1);
  await expect(migrateOut(source, NOBODY, { threads })).rejects.toMatchObject({
    code: "CONFIGURATION_INVALID",
    facts: { problems: ["threads made ready for a destination do not serve a source"] },
  });
  expect(threads.count).toBe(1);
});

test.for([-1, 1.5, Number.NaN, 65])("%s is no number of threads", (count) => {
  expect(() => new ReadyThreads("source", count)).toThrow(RangeError);
});

test.for([-1, 1.5, Number.NaN, 5])("%s is no number of lanes", (lanes) => {
  expect(() => new ReadyThreads("source", 0, { lanes })).toThrow(RangeError);
});

test("threads are for one of two ends", () => {
  expect(() => new ReadyThreads("target" as "source", 1)).toThrow(/"target"/);
});
