import { checkGiven, Occupied, takeGiven } from "./given.ts";
import type { SourceHost } from "./host.ts";
import type { LiveParameters } from "./live-parameters.ts";
import type { ParameterOptions } from "./parameters.ts";
import type { PostcopyRecovery } from "./postcopy-recovery.ts";
import type { PostcopySwitch } from "./postcopy-switch.ts";
import type { ReadyThreads } from "./ready-threads.ts";
import { SourceMigration } from "./source-migration.ts";
import type { Progress, Report } from "./statistics.ts";
import { REAL_SURROUNDINGS, type Surroundings } from "./surroundings.ts";

/** The phases of a migration at the source, in order. */
export const SOURCE_PHASES = [
  "connect",
  "agree",
  "precopy",
  "pause",
  "rest",
  "devices",
  "ready",
  "commit",
] as const;
/**
 * In post-copy one more follows, until all memory has. When the link breaks it is paused until it is
 * recovered, and goes on.
 */
export type PostcopyPhase = "postcopy" | "postcopy-paused" | "postcopy-recover";
export type SourcePhase = (typeof SOURCE_PHASES)[number] | PostcopyPhase;

export interface MigrateOutOptions extends ParameterOptions {
  /** Cancels: the guest runs on here. From COMMIT on it only ends a post-copy that is paused then. */
  readonly signal?: AbortSignal;
  readonly onPhase?: (phase: SourcePhase) => void;
  /** Called once, when both ends have met: the migration's id, the same at both and no other's. */
  readonly onMigration?: (id: string) => void;
  /** Called some times per second; less often where counting what is dirty, of many TiB, takes long. */
  readonly onProgress?: (progress: Progress) => void;
  /** Lets parameters change while the migration runs. */
  readonly live?: LiveParameters;
  /** Lets post-copy begin while the migration runs. */
  readonly postcopySwitch?: PostcopySwitch;
  /** Lets a post-copy whose link broke go on. */
  readonly recovery?: PostcopyRecovery;
  /** It takes of these what it needs, starts what is wanting, and gives them back in the end. */
  readonly threads?: ReadyThreads;
}

/** Two attempts at once would end with two running copies. */
const leaving = new Occupied(
  "the host's guest is leaving already: wait until that migration has ended",
);

/**
 * Moves a running guest out, to whoever listens at `address`.
 *
 * On return the guest is paused here and runs there. On a failure before COMMIT it runs here as it
 * was found, tracking and throttling are off, and a second attempt may follow. A failure after
 * COMMIT is HANDOVER_UNKNOWN and leaves it paused here: the destination may have started it, and
 * two running copies are the one outcome that cannot be repaired. In post-copy the guest runs there
 * and still needs pages from here: POSTCOPY_INTERRUPTED, and memory here must be kept.
 *
 * Throws MigrationError only; CONFIGURATION_INVALID before anything is touched. `surroundings` are
 * for simulations.
 */
export async function migrateOut(
  host: SourceHost,
  address: string,
  options: MigrateOutOptions = {},
  surroundings: Surroundings = REAL_SURROUNDINGS,
): Promise<Report> {
  checkGiven("source", host, options);
  using _leaves = leaving.take(host);
  using _steered = takeGiven(options);
  const migration = await SourceMigration.prepare(host, address, options, surroundings);
  const { attempt } = migration;
  try {
    await using undo = new AsyncDisposableStack();

    await attempt.run("connect", () => migration.connect());
    await attempt.run("agree", () => migration.agree());

    undo.defer(() => migration.stopTracking());
    undo.defer(() => migration.liftThrottle());
    await attempt.run("precopy", () => migration.sendRounds());

    undo.defer(() => migration.resumeGuest());
    await attempt.run("pause", () => migration.pauseGuest());
    await attempt.run("rest", () => migration.sendRest());
    await attempt.run("devices", () => migration.sendDevices());
    await attempt.run("ready", () => migration.awaitReady());

    attempt.commit();
    undo.move(); // The point of no return.
    await attempt.run("commit", () => migration.handOver());
    if (migration.isPostcopy) await attempt.run("postcopy", () => migration.sendMissing());
    return migration.report();
  } catch (error) {
    throw await migration.failureOf(error);
  } finally {
    await migration.close();
  }
}
