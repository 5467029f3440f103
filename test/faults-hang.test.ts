import { beforeAll, expect, test } from "vitest";
import { FaultRig, warmUp } from "./harness/fault-rig.ts";
import { afterReports, HANGS } from "./harness/hangs.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Nothing that does not hang takes so long, also on a busy machine. */
const LIMIT_MS = 1500;

/** Reports that must come while it hangs, which only ends after that. */
const REPORTS = 5;

beforeAll(warmUp);

for (const [name, hang] of Object.entries(HANGS)) {
  for (const side of ["source", "destination"] as const) {
    test(`progress is told and a cancel at the ${side} answered all the while: ${name} (SEED=${seed})`, async () => {
      const rig = new FaultRig(seed);
      const usual = { onLook: rig.source.onLook, onPause: rig.source.onPause };
      const abort = new AbortController();
      const hanging = await hang(rig);
      // Both ends go on telling, and only then one of them is cancelled.
      const told = { source: 0, destination: 0 };
      let isBegun = false;
      void hanging.begun.then(() => {
        isBegun = true;
      });
      const tell = (end: "source" | "destination") => () => {
        if (!isBegun) return;
        told[end] += 1;
        if (told.source >= REPORTS && told.destination >= REPORTS) abort.abort();
      };
      const signal = abort.signal;
      const out = { onProgress: tell("source"), ...(side === "source" ? { signal } : {}) };
      const into = { onProgress: tell("destination"), ...(side === "source" ? {} : { signal }) };
      const limits = { channelTimeoutMs: 4 * LIMIT_MS };
      const outcome = await rig.fails({
        ...hanging.options,
        out: { ...out, ...limits },
        in: { ...into, ...limits },
      });
      expect(outcome[side].failure).toMatchObject({ code: "CANCELLED", at: side });
      await hanging[Symbol.asyncDispose]();
      Object.assign(rig.source, usual);
      await rig.succeeds();
    });
  }

  test(`the stage's limit ends it: ${name} (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const usual = { onLook: rig.source.onLook, onPause: rig.source.onPause };
    const hanging = await hang(rig);
    const limits = { channelTimeoutMs: LIMIT_MS, connectTimeoutMs: LIMIT_MS, stepTimeoutMs: LIMIT_MS };
    const outcome = await rig.fails({ ...hanging.options, out: limits, in: limits });
    expect({ name, s: outcome.source.failure?.code, d: outcome.destination.failure?.code }).toBe(1);
    await hanging[Symbol.asyncDispose]();
    Object.assign(rig.source, usual);
    await rig.succeeds();
  });
}
void afterReports;
