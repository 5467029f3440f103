import { DestinationMigration } from "./destination-migration.ts";
import { checkGiven, Occupied, takeGiven } from "./given.ts";
import type { DestinationHost } from "./host.ts";
import type { ParameterOptions } from "./parameters.ts";
import type { PostcopyRecovery } from "./postcopy-recovery.ts";
import type { ReadyThreads } from "./ready-threads.ts";
import type { PostcopyPhase } from "./source.ts";
import type { Progress, Report } from "./statistics.ts";
import { REAL_SURROUNDINGS, type Surroundings } from "./surroundings.ts";

/** The phases of a migration at the destination, in order. */
export const DESTINATION_PHASES = [
  "listen",
  "agree",
  "receive",
  "devices",
  "load",
  "commit",
  "resume",
] as const;
/** In post-copy one more follows, until all memory has; while the link is broken it is paused. */
export type DestinationPhase = (typeof DESTINATION_PHASES)[number] | PostcopyPhase;

export interface MigrateInOptions extends ParameterOptions {
  /** Cancels: the guest runs on at the source. From COMMIT on it only ends a paused post-copy. */
  readonly signal?: AbortSignal;
  readonly onPhase?: (phase: DestinationPhase) => void;
  /** Called once, with the address as a source can use it: a port 0 was replaced. */
  readonly onListening?: (address: string) => void;
  /** Called once, when both ends have met: the migration's id, the same at both and no other's. */
  readonly onMigration?: (id: string) => void;
  /** Called some times per second. */
  readonly onProgress?: (progress: Progress) => void;
  /** Lets a post-copy whose link broke go on. */
  readonly recovery?: PostcopyRecovery;
  /**
   * It takes of these what it needs, starts what is wanting, and gives them back in the end. Without them
   * it starts some while it listens.
   */
  readonly threads?: ReadyThreads;
}

/** Two guests at once would be in each other's memory. */
const arriving = new Occupied(
  "the host takes a guest in already: wait until that migration has ended",
);

/**
 * Takes one guest in, from the first source that connects to `address`.
 *
 * On return the guest runs here. On a failure before COMMIT arrived, the host has discarded what it
 * prepared and the guest must not run here: it is the source's. On a failure after that (the host
 * cannot resume it) memory is kept, for the guest belongs here and nowhere else. In post-copy it may
 * miss pages then, and waits for them: POSTCOPY_INTERRUPTED.
 *
 * Throws MigrationError only; CONFIGURATION_INVALID before anything is touched. `surroundings` are
 * for simulations.
 */
export async function migrateIn(
  host: DestinationHost,
  address: string,
  options: MigrateInOptions = {},
  surroundings: Surroundings = REAL_SURROUNDINGS,
): Promise<Report> {
  checkGiven("destination", host, options);
  using _arrives = arriving.take(host);
  using _steered = takeGiven(options);
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
    await attempt.run("commit", () => migration.awaitCommit());

    attempt.commit();
    undo.move(); // From here on the guest is ours.
    await attempt.run("resume", () => migration.resume());
    if (migration.isPostcopy) await attempt.run("postcopy", () => migration.receiveMissing());
    return await migration.report();
  } catch (error) {
    throw (await migration.failureOf(error)).leaving(migration.leftover);
  } finally {
    await migration.close();
  }
}
