import { beforeAll, expect, test } from "vitest";
import { ReadyThreads } from "../engine/ready-threads.ts";
import { migrateOut } from "../engine/source.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { ThreadWatch } from "./harness/thread-watch.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Nobody listens there. */
const NOBODY = "tcp:127.0.0.1:1";

beforeAll(warmUp);

test(`a migration takes ready threads, starts those that are wanting, and ends both (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  {
    using watch = new ThreadWatch();
    await using threads = new ReadyThreads("source", 2);
    await using others = new ReadyThreads("destination", 4);
    expect(await watch.all()).toHaveLength(6);
    // The second time more must be started, at both ends.
    for (const [all, left] of [
      [7, 1],
      [12, 0],
    ]) {
      const rig = new FaultRig(seed);
      const outcome = await rig.attempt({ out: { channels: 3, threads }, in: { threads: others } });
      expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
      rig.expectArrived();
      expect(await watch.all()).toHaveLength(all ?? 0);
      expect([threads.count, others.count]).toEqual([0, left]);
    }
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

test("threads are for one of two ends", () => {
  expect(() => new ReadyThreads("target" as "source", 1)).toThrow(/"target"/);
});
