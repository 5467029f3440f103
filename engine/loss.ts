import { MigrationError } from "../base/errors.ts";

/** A channel that failed so is lost; whoever has others goes on without it. */
const LOSSES: ReadonlySet<string> = new Set(["CHANNEL_LOST", "CHANNEL_STALLED"]);

/**
 * Whether a channel's failure is of its connection only. What the peer says is its verdict, and
 * bytes that are wrong (a corrupt frame, a checksum, a generation) are no matter of a connection:
 * either ends the migration.
 */
export function isLoss(error: unknown): error is MigrationError {
  return error instanceof MigrationError && error.at === undefined && LOSSES.has(error.code);
}
