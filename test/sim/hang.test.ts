import { beforeAll, expect, test } from "vitest";
import { loadChecksum } from "../../channels/checksum.ts";
import { Prng, seedFromEnvironment } from "../prng.ts";
import { drawSetting, type Fault, type FaultKind, formatPlan, type Plan } from "./faults.ts";
import { REAL_ENGINE, simulate } from "./simulation.ts";
import { timeOf } from "./trace.ts";

/**
 * Progress and cancel answer within 100 ms while a last stage hangs, by a clock that stands still
 * while anything can run: what takes time here is what the engine waits for. The same, and status,
 * with threads, sockets and a kernel is in faults-hang.test.ts, by counts.
 */
const seed = seedFromEnvironment();

const ANSWER_MS = 100;

/** After the step begins it hangs, and after this it is cancelled, before any limit is met. */
const CANCEL_AFTER_MS = 350;

/** What a destination waits for besides, before it gives memory away: see the table. */
const FAREWELL_MS = 300;
const THREAD_END_MS = 2000;

/** A few, for the numbers that the seed has: networks, channels, sizes. */
const RUNS = 3;

beforeAll(async () => {
  await loadChecksum();
});

interface Hang {
  /** Of the source. */
  readonly step: string;
  readonly faults?: readonly FaultKind[];
  readonly troubles?: Plan["troubles"];
  /** A source that hears of it, and closes; and threads that may still write. */
  readonly destinationWaitsMs?: number;
}

const HANGS: Readonly<Record<string, Hang>> = {
  "a device that is never saved": {
    step: "source devices",
    troubles: [{ call: "saveDevices", trouble: "hangs" }],
  },
  "a device that is never loaded": {
    step: "source ready",
    troubles: [{ call: "loadDevices", trouble: "hangs" }],
  },
  "a peer that neither reads nor acknowledges": {
    step: "source rest",
    faults: ["half-open to source", "half-open to destination"],
    destinationWaitsMs: FAREWELL_MS,
  },
  "a peer that does not acknowledge": {
    step: "source rest",
    faults: ["half-open to source"],
    destinationWaitsMs: FAREWELL_MS,
  },
  "a disk at the source": { step: "source rest", faults: ["a source's disk hangs"] },
  "a disk at the destination": {
    step: "source rest",
    faults: ["a destination's disk hangs"],
    destinationWaitsMs: THREAD_END_MS,
  },
};

for (const [name, hang] of Object.entries(HANGS)) {
  const { step, faults = [], troubles = [], destinationWaitsMs = 0 } = hang;
  for (const side of ["source", "destination"] as const) {
    test(`${name}: both ends tell progress, and the ${side} is cancelled (SEED=${seed})`, async () => {
      for (let run = 0; run < RUNS; run += 1) {
        const own = (seed + run) >>> 0;
        const at = (kind: FaultKind, afterMs: number): Fault => {
          return { kind, target: "all", moment: { step, afterMs } };
        };
        const plan: Plan = {
          ...drawSetting(own, new Prng(own)),
          // Some memory is left for the rest, which takes a while.
          ...{ eagerness: 24, bytesPerMs: 2000, channels: 1, timeoutMs: 60 },
          ...{ nonConvergence: "switch-over", reconnectTimeoutMs: 0, postcopy: "never" },
          faults: [...faults.map((kind) => at(kind, 0)), at(`${side} cancels`, CANCEL_AFTER_MS)],
          troubles,
        };
        const told = { source: [] as number[], destination: [] as number[] };
        const { violations, trace } = await simulate(plan, REAL_ENGINE, (end, atMs) => {
          told[end].push(atMs);
        });
        const story = [`SEED=${seed}`, formatPlan(plan), ...trace].join("\n");
        expect(violations, story).toEqual([]);
        const begunMs = timeOf(trace, step);
        const cancelledMs = timeOf(trace, `fault: ${side} cancels (all)`);
        expect(cancelledMs - begunMs, story).toBeCloseTo(CANCEL_AFTER_MS);
        for (const [end, times] of Object.entries(told)) {
          const hanging = times.filter((ms) => ms >= begunMs && ms <= cancelledMs);
          const gaps = [begunMs, ...hanging, cancelledMs].map((ms, index, all) => {
            return index === 0 ? 0 : ms - (all[index - 1] ?? ms);
          });
          expect(Math.max(...gaps), `${end}\n${story}`).toBeLessThanOrEqual(ANSWER_MS);
        }
        const end = side === "source" ? "migrateOut" : "migrateIn";
        const endMs = timeOf(trace, `${end} ends: CANCELLED`);
        const waitsMs = side === "destination" ? destinationWaitsMs : 0;
        expect(endMs - cancelledMs, story).toBeLessThanOrEqual(waitsMs + ANSWER_MS);
      }
    });
  }
}
