import { beforeAll, expect, onTestFinished, test } from "vitest";
import { useClock } from "../base/clock.ts";
import { HOUR_MS } from "../base/units.ts";
import { migrateIn } from "../engine/destination.ts";
import { ReadyThreads } from "../engine/ready-threads.ts";
import { migrateOut } from "../engine/source.ts";
import { REAL_SURROUNDINGS } from "../engine/surroundings.ts";
import { WireSource } from "./fixtures/wire-source.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { Delay } from "./harness/misbehaviour.ts";
import { outcomeOf } from "./harness/pair.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** A step that is late for this is late on purpose. */
const STEP_MS = 300;
const HASTY = { stepTimeoutMs: STEP_MS } as const;

beforeAll(warmUp);

test(`a pause that comes after its deadline ends with the guest running (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const pausing = new Delay();
  rig.source.misbehave("pause", pausing.misbehaviour);
  const outcome = await rig.fails({ out: HASTY });
  expect(outcome.source.failure?.code).toBe("HOST_TIMEOUT");

  await pausing.end();
  expect(rig.source.calls).toEqual(["startDirtyLog", "pause", "resume", "stopDirtyLog", "resume"]);
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`a dirty log that starts after its deadline is stopped again (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const starting = new Delay();
  rig.source.misbehave("startDirtyLog", starting.misbehaviour);
  await rig.fails({ out: HASTY });
  await starting.end();
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`a throttle that acts after its deadline is lifted again (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const throttling = new Delay();
  rig.source.onLook = () => rig.source.writePages(2000);
  rig.source.misbehave("throttle", throttling.misbehaviour);
  const stubborn = { autoConverge: true, downtimeLimitMs: 1, maxRounds: 8 };
  await rig.fails({ out: { ...HASTY, ...stubborn } });
  expect(rig.source.calls.filter((call) => call.startsWith("throttle"))).toEqual([
    "throttle 20",
    "throttle 0",
  ]);
  await throttling.end();
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`memory that is prepared after its deadline is discarded (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const preparing = new Delay();
  rig.destination.misbehave("prepare", preparing.misbehaviour);
  const outcome = await rig.fails({ in: HASTY });
  expect(verdictsOf(outcome).source).toBe("HOST_TIMEOUT at destination");
  await preparing.end();
  rig.expectDiscarded();
  await rig.succeeds();
});

test(`devices that are loaded after their deadline are discarded (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const loading = new Delay();
  rig.destination.misbehave("loadDevices", loading.misbehaviour);
  await rig.fails({ in: HASTY });
  await loading.end();
  expect(rig.destination.sections).toBe(null);
  await rig.succeeds();
});

test(`a pause of an earlier attempt never runs a guest that has left since (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const pausing = new Delay();
  rig.source.misbehave("pause", pausing.misbehaviour);
  await rig.fails({ out: HASTY });
  await rig.succeeds();

  await pausing.end();
  expect(rig.source.running).toBe(false);
  expect(rig.destination.running).toBe(true);
});

test(`a pause of an earlier attempt does not keep a guest that runs on (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const pausing = new Delay();
  rig.source.misbehave("pause", pausing.misbehaviour);
  await rig.fails({ out: HASTY });
  rig.source.misbehave("saveDevices", async () => {
    throw new Error("the second attempt fails");
  });
  await rig.fails();
  await pausing.end();
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`a dirty log of an earlier attempt does not end that of the next (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const { source } = rig;
  const starting = new Delay();
  source.misbehave("startDirtyLog", starting.misbehaviour);
  await rig.fails({ out: HASTY });

  let ended: Promise<void> | null = null;
  source.misbehave("pause", async (act) => {
    ended = starting.end();
    await ended;
    source.writePages(40);
    return await act();
  });
  await rig.succeeds();
  expect(ended).not.toBe(null);
});

test(`memory of an earlier attempt is not discarded under the next (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const { destination } = rig;
  const preparing = new Delay();
  destination.misbehave("prepare", preparing.misbehaviour);
  await rig.fails({ in: HASTY });

  destination.misbehave("loadDevices", async (act) => {
    const { blocks } = destination;
    await preparing.end();
    destination.blocks = blocks;
    return await act();
  });
  destination.calls.length = 0;
  const outcome = await rig.attempt();
  expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
  rig.expectArrived();
});

test(`a step that returns before its attempt is undone is undone with it, once (SEED=${seed})`, async () => {
  for (const step of ["prepare", "loadDevices"] as const) {
    const rig = new FaultRig(seed);
    const delay = new Delay();
    rig.destination.misbehave(step, delay.misbehaviour);
    const abort = new AbortController();
    const failing = rig.fails({ in: { signal: abort.signal } });
    await delay.begun;
    abort.abort();
    // The source is told first: memory is still there when the step comes to its end.
    await delay.end();
    const outcome = await failing;
    expect(verdictsOf(outcome).destination).toBe("CANCELLED at destination");
    expect(rig.destination.calls.filter((call) => call === "discard")).toEqual(["discard"]);
    await rig.succeeds();
  }
});

test(`a source that comes while a cancelled destination tidies up leaves nothing behind (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const leaks = new LeakCheck();
  const ended = Promise.withResolvers<boolean>();
  const surroundings = {
    ...REAL_SURROUNDINGS,
    readyThreads(side: "source" | "destination"): ReadyThreads {
      const threads = new ReadyThreads(side, 0);
      threads.close = () => ended.promise;
      return threads;
    },
  };
  const cancel = new AbortController();
  const listening = Promise.withResolvers<string>();
  const met: string[] = [];
  const options = {
    signal: cancel.signal,
    onListening: listening.resolve,
    onMigration: (id: string) => met.push(id),
    onProgress: () => {},
  };
  const arriving = outcomeOf(migrateIn(rig.destination, "tcp:127.0.0.1:0", options, surroundings));
  const address = await listening.promise;
  cancel.abort();
  const welcome = Promise.withResolvers<string>();
  const leaving = outcomeOf(migrateOut(rig.source, address, { onMigration: welcome.resolve }));
  await Promise.race([welcome.promise, leaving]);
  ended.resolve(true);
  expect((await arriving).failure?.code).toBe("CANCELLED");
  expect((await leaving).failure).not.toBe(null);
  expect(met).toEqual([]);
  await leaks.settled();
});

test(`a cancel does not leave a connection behind that nobody answers (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const given = Promise.withResolvers<never>();
  const begun = Promise.withResolvers<void>();
  const connect = (): Promise<never> => {
    begun.resolve();
    return given.promise;
  };
  let closed = 0;
  const close = (): void => {
    closed += 1;
    given.reject(new Error("this end closed it"));
  };
  const surroundings = { ...REAL_SURROUNDINGS, connector: () => ({ connect, close }) };
  const cancel = new AbortController();
  const { signal } = cancel;
  const leaving = outcomeOf(migrateOut(rig.source, "tcp:127.0.0.1:1", { signal }, surroundings));
  await begun.promise;
  cancel.abort();
  expect((await leaving).failure?.code).toBe("CANCELLED");
  expect(closed).toBe(1);
});

test(`a source that goes while a failed destination tidies up is not waited for (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  let waits = 0;
  onTestFinished(
    useClock({
      nowMs: () => performance.now(),
      cpuMs: () => 0,
      after(ms, call) {
        const timer = setTimeout(call, ms);
        waits += ms === HOUR_MS ? 1 : 0;
        return () => {
          waits -= ms === HOUR_MS ? 1 : 0;
          clearTimeout(timer);
        };
      },
      every(ms, call) {
        const timer = setInterval(call, ms);
        return () => clearInterval(timer);
      },
    }),
  );
  const closing = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<boolean>();
  const surroundings = {
    ...REAL_SURROUNDINGS,
    readyThreads(side: "source" | "destination"): ReadyThreads {
      const threads = new ReadyThreads(side, 0);
      threads.close = () => {
        closing.resolve();
        return ended.promise;
      };
      return threads;
    },
  };
  const cancel = new AbortController();
  const listening = Promise.withResolvers<string>();
  const met = Promise.withResolvers<string>();
  const options = {
    signal: cancel.signal,
    onListening: listening.resolve,
    onMigration: met.resolve,
    reconnectTimeoutMs: HOUR_MS,
  };
  const arriving = outcomeOf(migrateIn(rig.destination, "tcp:127.0.0.1:0", options, surroundings));
  const source = await WireSource.connect(await listening.promise);
  await met.promise;
  cancel.abort();
  await closing.promise;
  source.close();
  await source.main.closed();
  ended.resolve(true);
  expect((await arriving).failure?.code).toBe("CANCELLED");
  expect(waits).toBe(0);
});
