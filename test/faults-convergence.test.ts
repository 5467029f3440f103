import { beforeAll, expect, test } from "vitest";
import { LiveParameters } from "../engine/live-parameters.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { Delay } from "./harness/misbehaviour.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** No pause is as short as this, so no round is ever good enough. */
const IMPOSSIBLE_MS = 1;

beforeAll(warmUp);

/** A guest that writes about half of its memory in every round. */
function busyRig(): FaultRig {
  const rig = new FaultRig(seed);
  rig.source.onLook = () => rig.source.writePages(200);
  return rig;
}

test(`a guest that writes too fast is NOT_CONVERGING after max-rounds and runs on (SEED=${seed})`, async () => {
  const rig = busyRig();
  const out = { downtimeLimitMs: IMPOSSIBLE_MS, maxRounds: 4 };
  const outcome = await rig.fails({ out });
  expect(verdictsOf(outcome)).toEqual({
    source: "NOT_CONVERGING at source",
    destination: "NOT_CONVERGING at source",
  });
  expect(outcome.source.failure?.facts).toMatchObject({ rounds: 4, limitMs: IMPOSSIBLE_MS });
  expect(rig.source.calls).toEqual(["startDirtyLog", "stopDirtyLog"]);
  await rig.succeeds({ out: { ...out, nonConvergence: "switch-over" } });
});

test(`a guest that does not converge is switched over where that is wanted (SEED=${seed})`, async () => {
  const rig = busyRig();
  const { source } = await rig.succeeds({
    out: { downtimeLimitMs: IMPOSSIBLE_MS, maxRounds: 4, nonConvergence: "switch-over" },
  });
  // Four rounds while it ran and the rest.
  expect(source.report?.rounds).toHaveLength(5);
});

test(`a throttle that does not help is lifted when the attempt fails (SEED=${seed})`, async () => {
  const rig = busyRig();
  rig.source.onLook = () => rig.source.writePages(2000);
  const out = {
    downtimeLimitMs: IMPOSSIBLE_MS,
    maxRounds: 6,
    autoConverge: true,
    throttleInitialPercent: 30,
    throttleIncrementPercent: 50,
    throttleMaxPercent: 70,
  };
  const outcome = await rig.fails({ out });
  expect(outcome.source.failure?.code).toBe("NOT_CONVERGING");
  const throttled = rig.source.calls.filter((call) => call.startsWith("throttle"));
  expect(throttled).toEqual(["throttle 30", "throttle 70", "throttle 0"]);
  // After COMMIT nothing is asked of the host any more: the guest that was throttled has left.
  await rig.succeeds({ out: { ...out, nonConvergence: "switch-over" } });
  expect(rig.source.calls.at(-1)).toBe("saveDevices");
});

/** Time runs out while the host still starts its dirty log, or else while rounds are sent. */
for (const where of ["starting", "rounds"] as const) {
  test(`time that runs out in precopy is TIMEOUT and the guest runs on: ${where} (SEED=${seed})`, async () => {
    const rig = busyRig();
    const live = new LiveParameters();
    const out = { downtimeLimitMs: IMPOSSIBLE_MS, maxRounds: 1000, live };
    let looks = 0;
    rig.source.onLook = () => {
      rig.source.writePages(10);
      looks += 1;
      if (looks === 50) live.change({ timeoutMs: 10 });
    };
    if (where === "starting") {
      const starting = new Delay();
      rig.source.misbehave("startDirtyLog", async (act) => {
        live.change({ timeoutMs: 10 });
        void starting.begun.then(() => setTimeout(() => void starting.end(), 20));
        return await starting.misbehaviour(act);
      });
    }
    const outcome = await rig.fails({ out });
    expect(verdictsOf(outcome)).toEqual({
      source: "TIMEOUT at source",
      destination: "TIMEOUT at source",
    });
    expect(outcome.source.failure?.facts).toEqual({ phase: "precopy", limitMs: 10 });
    await rig.succeeds();
  });
}

test(`time that runs out switches over where that is wanted (SEED=${seed})`, async () => {
  const rig = busyRig();
  const live = new LiveParameters();
  let looks = 0;
  rig.source.onLook = () => {
    rig.source.writePages(10);
    looks += 1;
    if (looks === 50) live.change({ timeoutMs: 10 });
  };
  await rig.succeeds({
    out: {
      downtimeLimitMs: IMPOSSIBLE_MS,
      maxRounds: 1000,
      nonConvergence: "switch-over",
      live,
    },
  });
});

test(`time that runs out after the guest was paused changes nothing (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const live = new LiveParameters();
  rig.source.misbehave("pause", async (act) => {
    live.change({ timeoutMs: 10 });
    await new Promise((resolve) => setTimeout(resolve, 20));
    return await act();
  });
  await rig.succeeds({ out: { live } });
});
