import { MigrationError } from "../../base/errors.ts";
import type { migrateIn } from "../../engine/destination.ts";
import { DestinationMigration } from "../../engine/destination-migration.ts";
import type { migrateOut } from "../../engine/source.ts";
import { SourceMigration } from "../../engine/source-migration.ts";
import { REAL_SURROUNDINGS } from "../../engine/surroundings.ts";
import { type Fault, LONG_POSTCOPY, type Plan } from "./faults.ts";
import {
  ADMITS_ANY_TOKEN,
  ASKS_NO_DESTINATION,
  ASKS_NO_RECORD,
  FORGETS_WHAT_CAME,
  FORGETS_WHAT_IS_UNFENCED,
  RESUMES_WHEN_GIVEN_UP,
  SKIPS_A_FRAME,
  TRUSTS_ITS_BITMAP,
} from "./flaws.ts";
import { type Engine, REAL_ENGINE } from "./simulation.ts";

/** As the real one, but whether it pauses, and what it undoes, is as `flaw` says. */
function flawedSource(
  flaw:
    | "resumes after COMMIT"
    | "leaves tracking on"
    | "resumes when interrupted"
    | "does not pause",
): typeof migrateOut {
  return async (host, address, options = {}, surroundings = REAL_SURROUNDINGS) => {
    const migration = await SourceMigration.prepare(host, address, options, surroundings);
    const { attempt } = migration;
    try {
      await using undo = new AsyncDisposableStack();
      await attempt.run("connect", () => migration.connect());
      await attempt.run("agree", () => migration.agree());
      if (flaw !== "leaves tracking on") undo.defer(() => migration.stopTracking());
      undo.defer(() => migration.liftThrottle());
      await attempt.run("precopy", () => migration.sendRounds());
      undo.defer(() => migration.resumeGuest());
      if (flaw !== "does not pause") await attempt.run("pause", () => migration.pauseGuest());
      await attempt.run("rest", () => migration.sendRest());
      await attempt.run("devices", () => migration.sendDevices());
      await attempt.run("ready", () => migration.awaitReady());
      attempt.commit();
      if (flaw !== "resumes after COMMIT") undo.move();
      await attempt.run("commit", () => migration.handOver());
      if (flaw === "resumes after COMMIT") undo.move();
      if (migration.isPostcopy) await attempt.run("postcopy", () => migration.sendMissing());
      return migration.report();
    } catch (error) {
      if (flaw === "resumes when interrupted" && attempt.isCommitted) await migration.resumeGuest();
      throw await migration.failureOf(error);
    } finally {
      await migration.close();
    }
  };
}

/** As the real one, but for what `flaw` says of when the guest runs, and of what becomes of it else. */
function flawedDestination(
  flaw:
    | "runs before COMMIT"
    | "takes silence for COMMIT"
    | "does not discard"
    | "fails when the guest runs",
): typeof migrateIn {
  return async (host, address, options = {}, surroundings = REAL_SURROUNDINGS) => {
    const migration = await DestinationMigration.prepare(host, address, options, surroundings);
    const { attempt } = migration;
    try {
      await using undo = new AsyncDisposableStack();
      await attempt.run("listen", () => migration.listen());
      if (flaw !== "does not discard") undo.defer(() => migration.discard());
      await attempt.run("agree", () => migration.agree());
      await attempt.run("receive", () => migration.receive());
      await attempt.run("devices", () => migration.receiveDevices());
      await attempt.run("load", () => migration.load());
      if (flaw === "runs before COMMIT") await host.resume();
      if (flaw === "takes silence for COMMIT") undo.move();
      await attempt.run("commit", () => migration.awaitCommit());
      attempt.commit();
      if (flaw !== "takes silence for COMMIT") undo.move();
      await attempt.run("resume", () => migration.resume());
      if (flaw === "fails when the guest runs")
        throw new MigrationError("CANCELLED", { phase: "resume" });
      if (migration.isPostcopy) await attempt.run("postcopy", () => migration.receiveMissing());
      return await migration.report();
    } catch (error) {
      if (flaw === "takes silence for COMMIT" && attempt.phase === "commit") await host.resume();
      throw await migration.failureOf(error);
    } finally {
      await migration.close();
    }
  };
}

/** COMMIT arrives, and nobody hears that it has. */
const ANSWER_LOST: Partial<Plan> = {
  latencyMs: 2,
  timeoutMs: 20_000,
  nonConvergence: "switch-over",
  troubles: [],
  faults: [{ kind: "cut", target: "main", moment: { step: "source commit", afterMs: 3 } }],
};

/** A plan of nothing but this, with time enough. */
function just(fault: Fault, ...others: readonly Fault[]): Partial<Plan> {
  return {
    timeoutMs: 20_000,
    nonConvergence: "switch-over",
    postcopy: "never",
    troubles: [],
    faults: [fault, ...others],
  };
}

/** The link of a post-copy breaks in the middle, and another leg may follow. */
const BREAK: Fault = {
  kind: "cut",
  target: "all",
  moment: { step: "source postcopy", afterMs: 40 },
};
const BREAKS_ONCE: Partial<Plan> = { ...just(BREAK), ...LONG_POSTCOPY, reconnectTimeoutMs: 5000 };

/** Engines with a flaw each, and what the simulator must say of them. */
export const BROKEN: readonly {
  readonly states: string;
  readonly engine: Engine;
  readonly blamed: RegExp;
  /** What is not as the seed has it. */
  readonly setting?: Partial<Plan>;
}[] = [
  {
    states: "a source that resumes after COMMIT",
    engine: { ...REAL_ENGINE, migrateOut: flawedSource("resumes after COMMIT") },
    blamed: /two copies of the guest run/,
    setting: { ...ANSWER_LOST, postcopy: "never" },
  },
  {
    states: "a source that resumes when the destination has run the guest, and is gone",
    engine: { ...REAL_ENGINE, migrateOut: flawedSource("resumes after COMMIT") },
    blamed: /source's guest runs again after it ran at the destination/,
    setting: {
      ...ANSWER_LOST,
      postcopy: "never",
      faults: [
        ...(ANSWER_LOST.faults ?? []),
        {
          kind: "destination crashes",
          target: "all",
          moment: { step: "destination resume", afterMs: 3 },
        },
      ],
    },
  },
  {
    states: "a destination that runs before COMMIT",
    engine: { ...REAL_ENGINE, migrateIn: flawedDestination("runs before COMMIT") },
    blamed: /two copies of the guest run|a guest that runs was discarded/,
    setting: {
      ...just({ kind: "cut", target: "main", moment: { step: "destination load", afterMs: 2 } }),
      reconnectTimeoutMs: 0,
    },
  },
  {
    states: "a destination that does not discard what failed",
    engine: { ...REAL_ENGINE, migrateIn: flawedDestination("does not discard") },
    blamed: /what failed before COMMIT was not discarded/,
    setting: just({
      kind: "source cancels",
      target: "main",
      moment: { step: "source rest", afterMs: 0 },
    }),
  },
  {
    states: "a source that saves the devices of a guest that runs",
    engine: { ...REAL_ENGINE, migrateOut: flawedSource("does not pause") },
    blamed: /devices are saved while the guest runs/,
  },
  {
    states: "a destination that says a failure though it runs the guest",
    engine: { ...REAL_ENGINE, migrateIn: flawedDestination("fails when the guest runs") },
    blamed: /the guest runs at the destination, which says CANCELLED/,
    setting: { timeoutMs: 20_000, postcopy: "never", troubles: [], faults: [] },
  },
  {
    states: "a source that leaves tracking on",
    engine: { ...REAL_ENGINE, migrateOut: flawedSource("leaves tracking on") },
    blamed: /tracking is left on/,
  },
  {
    states: "a thread that drops the dirty bits of what it did not come to",
    engine: { ...REAL_ENGINE, threads: { dropsBits: true } },
    blamed: /is not the same when the guest runs/,
    setting: {
      nonConvergence: "switch-over",
      timeoutMs: 60,
      bytesPerMs: 2000,
      postcopy: "never",
      troubles: [],
      faults: [],
    },
  },
  {
    states: "a thread that loses a page",
    engine: { ...REAL_ENGINE, threads: { losesPage: true } },
    blamed: /is not the same when the guest runs/,
  },
  {
    states: "a thread that still writes when the guest runs",
    engine: { ...REAL_ENGINE, threads: { writesLate: true } },
    blamed: /is not the same once all is over/,
    setting: { timeoutMs: 20_000, postcopy: "never", troubles: [], faults: [] },
  },
  {
    states: "a source that resumes when post-copy is interrupted",
    engine: { ...REAL_ENGINE, migrateOut: flawedSource("resumes when interrupted") },
    blamed: /two copies of the guest run/,
    setting: { postcopy: "after-rounds", reconnectTimeoutMs: 0, operatorMs: 0 },
  },
  {
    states: "a thread that places a page twice in post-copy",
    engine: { ...REAL_ENGINE, threads: { overwrites: true } },
    blamed: /is not what the guest has there/,
    setting: { postcopy: "after-rounds", eagerness: 24 },
  },
  {
    states: "a thread that loses a page in post-copy, for which both ends wait then",
    engine: { ...REAL_ENGINE, threads: { losesPage: true } },
    blamed: /a migration fails that had no reason to/,
    setting: {
      ...LONG_POSTCOPY,
      troubles: [],
      faults: [],
      reconnectTimeoutMs: 0,
      operatorMs: 0,
      mustComplete: true,
    },
  },
  {
    states: "a destination that takes silence for COMMIT",
    engine: { ...REAL_ENGINE, migrateIn: flawedDestination("takes silence for COMMIT") },
    blamed: /two copies of the guest run/,
    setting: {
      ...just({
        kind: "cut",
        target: "main",
        moment: { step: "destination commit", afterMs: 0 },
      }),
      reconnectTimeoutMs: 0,
    },
  },
  {
    states: "a destination that runs what an operator has taken back",
    engine: { ...REAL_ENGINE, ...ASKS_NO_RECORD },
    blamed: /two copies of the guest run/,
    setting: {
      ...just({
        kind: "cut that only the source sees",
        target: "main",
        moment: { step: "source commit", afterMs: 0 },
      }),
      latencyMs: 5,
      settleAfterMs: 0,
    },
  },
  {
    states: "an operator who takes the guest back without asking the destination",
    engine: { ...REAL_ENGINE, ...ASKS_NO_DESTINATION },
    blamed: /two copies of the guest run/,
    setting: { ...ANSWER_LOST, postcopy: "never" },
  },
  {
    states: "a destination that forgets in a recovery what it has",
    engine: { ...REAL_ENGINE, ...FORGETS_WHAT_CAME },
    blamed: /is not what the guest has there/,
    setting: BREAKS_ONCE,
  },
  {
    states: "a source that sends after a recovery only what it had not sent",
    engine: { ...REAL_ENGINE, ...TRUSTS_ITS_BITMAP },
    blamed: /a migration fails that had no reason to|hangs/,
    setting: { ...BREAKS_ONCE, mustComplete: true },
  },
  {
    states: "a source that resumes the guest when a paused post-copy is given up",
    engine: { ...REAL_ENGINE, ...RESUMES_WHEN_GIVEN_UP },
    blamed: /two copies of the guest run/,
    setting: {
      ...just(BREAK, {
        kind: "source gives up",
        target: "all",
        moment: { step: "source postcopy-paused", afterMs: 10 },
      }),
      ...LONG_POSTCOPY,
      reconnectTimeoutMs: 0,
    },
  },
  {
    states: "a source that holds what a lost channel has sent to have arrived",
    engine: { ...REAL_ENGINE, ...FORGETS_WHAT_IS_UNFENCED },
    blamed: /is not the same when the guest runs/,
    setting: {
      ...just({
        kind: "cut that only the destination sees",
        target: "bulk",
        moment: { step: "source rest", afterMs: 0 },
      }),
    },
  },
  {
    states: "a destination that is joined again by whoever comes",
    engine: { ...REAL_ENGINE, ...ADMITS_ANY_TOKEN },
    blamed: /a migration fails that had no reason to/,
    setting: {
      ...just({
        kind: "stranger who joins again",
        target: "main",
        moment: { step: "source precopy", afterMs: 0 },
      }),
      reconnectTimeoutMs: 1000,
    },
  },
  {
    states: "an end that says, joined again, that it has a frame more than it has",
    engine: { ...REAL_ENGINE, ...SKIPS_A_FRAME },
    blamed: /a migration fails that had no reason to/,
    setting: {
      ...just({ kind: "cut", target: "main", moment: { step: "source precopy", afterMs: 0 } }),
      reconnectTimeoutMs: 2000,
      mustComplete: true,
    },
  },
];
