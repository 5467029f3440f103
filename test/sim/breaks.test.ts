import { beforeAll, expect, test } from "vitest";
import { loadChecksum } from "../../channels/checksum.ts";
import { Prng, seedFromEnvironment } from "../prng.ts";
import { drawSetting, type Fault, formatPlan, type Plan } from "./faults.ts";
import { type Outcome, simulate } from "./simulation.ts";
import { timeOf } from "./trace.ts";

/** Links that break in post-copy, by a simulated clock: when that is noticed, and how it goes on. */
const seed = seedFromEnvironment();

/** In the simulation: the limit, a beat of the watch after it, and the grace for the peer's word. */
const NOTICED_MS = 500 + 125 + 300;

/** A destination that had all by its other channels waits so long for the source's figures first. */
const DONE_MS = 1000;

const RUNS = 4;

beforeAll(async () => {
  await loadChecksum();
});

/** The guest writes much and the link is slow: something is left for post-copy. */
function planOf(run: number, faults: readonly Fault[]): Plan {
  const own = (seed + run) >>> 0;
  return {
    ...drawSetting(own, new Prng(own)),
    ...{ postcopy: "after-rounds", eagerness: 24, bytesPerMs: 2000, timeoutMs: 20_000 },
    // It is the source itself that joins again, or somebody who looks after it.
    ...(run % 2 === 0
      ? { reconnectTimeoutMs: 5000, operatorMs: 0 }
      : { reconnectTimeoutMs: 0, operatorMs: 300 }),
    recoverTimeoutMs: 60_000,
    faults,
  };
}

async function completes(plan: Plan): Promise<Outcome & { story: string }> {
  const outcome = await simulate(plan);
  const story = [`SEED=${seed}`, formatPlan(plan), ...outcome.trace].join("\n");
  // That memory is exact, and the guest in one place, is among these.
  expect(outcome.violations, story).toEqual([]);
  expect(outcome.ends, story).toEqual(["migrateIn completed", "migrateOut completed"]);
  return { ...outcome, story };
}

for (const [target, limitMs] of [
  ["all", NOTICED_MS],
  ["main", NOTICED_MS + DONE_MS],
] as const) {
  test(`a link that falls silent in post-copy (${target}) is noticed at both ends, and recovered (SEED=${seed})`, async () => {
    for (let run = 0; run < RUNS; run += 1) {
      // Nothing is cut: whatever was on its way is held for longer than anybody waits.
      const moment = { step: "source postcopy", afterMs: run };
      const { trace, story } = await completes(
        planOf(run, [{ kind: "long stall", target, moment }]),
      );
      const silentMs = timeOf(trace, "fault: long stall");
      for (const end of ["source", "destination"]) {
        const pausedMs = timeOf(trace, `${end} postcopy-paused`);
        expect(pausedMs - silentMs, `${end}\n${story}`).toBeLessThanOrEqual(limitMs);
        expect(pausedMs - silentMs, `${end}\n${story}`).toBeGreaterThan(0);
      }
    }
  });
}

for (const breaks of [1, 2, 3, 4, 6]) {
  test(`${breaks} breaks, all but the first in a recovery, lead back to the pause, and then it completes (SEED=${seed})`, async () => {
    for (let run = 0; run < RUNS; run += 1) {
      const faults = Array.from({ length: breaks }, (_, index): Fault => {
        const moment =
          index === 0
            ? { step: "source postcopy", nth: 1, afterMs: 1 }
            : { step: "source postcopy-recover", nth: index, afterMs: run / 2 };
        return { kind: "cut", target: "all", moment };
      });
      const { trace, story } = await completes(planOf(run, faults));
      const phases = trace.flatMap((line) => / source postcopy(.*)$/.exec(line)?.[1] ?? []);
      // A recovery may have come about by the time that it breaks again.
      expect([phases[0], phases.at(-1)], story).toEqual(["", ""]);
      const pauses = Array(breaks).fill(["-paused", "-recover"]).flat();
      expect(phases.filter((phase) => phase !== "")).toEqual(pauses);
    }
  });
}
