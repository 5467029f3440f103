import type { migrateIn } from "../../engine/destination.ts";
import { DestinationMigration } from "../../engine/destination-migration.ts";
import type { migrateOut } from "../../engine/source.ts";
import { SourceMigration } from "../../engine/source-migration.ts";
import { REAL_SURROUNDINGS } from "../../engine/surroundings.ts";
import type { Plan } from "./faults.ts";
import { type Engine, REAL_ENGINE } from "./simulation.ts";

/** As the real one, but what it undoes is as `flaw` says. */
function flawedSource(
  flaw: "resumes after COMMIT" | "leaves tracking on" | "resumes when interrupted",
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
      await attempt.run("pause", () => migration.pauseGuest());
      await attempt.run("rest", () => migration.sendRest());
      await attempt.run("devices", () => migration.sendDevices());
      await attempt.run("ready", () => migration.awaitReady());
      attempt.commit();
      if (flaw !== "resumes after COMMIT") undo.move();
      await attempt.run("commit", () => migration.handOver());
      undo.move();
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

/** As the real one, but the guest runs as soon as it could. */
const runsBeforeCommit: typeof migrateIn = async (
  host,
  address,
  options = {},
  surroundings = REAL_SURROUNDINGS,
) => {
  const migration = await DestinationMigration.prepare(host, address, options, surroundings);
  const { attempt } = migration;
  try {
    await using undo = new AsyncDisposableStack();
    await attempt.run("listen", () => migration.listen());
    undo.defer(() => migration.discard());
    await attempt.run("agree", () => migration.agree());
    await attempt.run("receive", () => migration.receive());
    await attempt.run("devices", () => migration.receiveDevices());
    await attempt.run("load", () => migration.load());
    await host.resume();
    await attempt.run("commit", () => migration.awaitCommit());
    attempt.commit();
    undo.move();
    await attempt.run("resume", () => migration.resume());
    if (migration.isPostcopy) await attempt.run("postcopy", () => migration.receiveMissing());
    return await migration.report();
  } catch (error) {
    throw await migration.failureOf(error);
  } finally {
    await migration.close();
  }
};

/** COMMIT arrives, and nobody hears that it has. */
const ANSWER_LOST: Partial<Plan> = {
  latencyMs: 2,
  timeoutMs: 20_000,
  nonConvergence: "switch-over",
  troubles: [],
  faults: [{ kind: "cut", target: "main", moment: { step: "source commit", afterMs: 3 } }],
};

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
    states: "a destination that runs before COMMIT",
    engine: { ...REAL_ENGINE, migrateIn: runsBeforeCommit },
    blamed: /two copies of the guest run|a guest that runs was discarded/,
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
  },
  {
    states: "a thread that loses a page",
    engine: { ...REAL_ENGINE, threads: { losesPage: true } },
    blamed: /is not the same when the guest runs/,
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
    blamed: /fails: POSTCOPY_INTERRUPTED/,
    setting: { postcopy: "after-rounds", eagerness: 24 },
  },
];
