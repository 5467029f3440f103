import { asMigrationError, MigrationError } from "../base/errors.ts";
import type { Report } from "../engine/statistics.ts";
import { leave } from "./leave.ts";
import type { Output } from "./output.ts";

export const EXIT = { completed: 0, failed: 1, usage: 2 } as const;

export const INTERRUPTS = ["SIGINT", "SIGTERM"] as const;

/**
 * Runs a migration for a command: an interrupt cancels it, and its end is told. Returns the exit
 * status. From then on interrupts come too late: what was told is true, and stays so.
 */
export async function runMigration(
  output: Output,
  migrate: (signal: AbortSignal) => Promise<Report>,
): Promise<number> {
  const controller = new AbortController();
  const cancel = (): void => controller.abort();
  for (const interrupt of INTERRUPTS) process.on(interrupt, cancel);
  try {
    output.completed(await migrate(controller.signal));
    return EXIT.completed;
  } catch (error) {
    return tellFailure(output, error);
  }
}

/** Settles as `work` does, or as CANCELLED as soon as somebody interrupts. */
export async function orCancelled<T>(
  signal: AbortSignal,
  phase: string,
  work: Promise<T>,
): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const cancel = (): void => reject(new MigrationError("CANCELLED", { phase }));
  signal.addEventListener("abort", cancel);
  if (signal.aborted) cancel();
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}

/** As `work`, in `phase`; CANCELLED as soon as an interrupt comes, of which earlier ones are none. */
export async function unlessInterrupted<T>(work: Promise<T>, phase: string): Promise<T> {
  const controller = new AbortController();
  const cancel = (): void => controller.abort();
  for (const interrupt of INTERRUPTS) process.on(interrupt, cancel);
  try {
    return await orCancelled(controller.signal, phase, work);
  } finally {
    for (const interrupt of INTERRUPTS) process.off(interrupt, cancel);
  }
}

/** Lets an interrupt end this process with `status`: nothing is left that could be cancelled. */
export function endOnInterrupt(status: number): void {
  for (const interrupt of INTERRUPTS) process.on(interrupt, () => void leave(status));
}

/** Tells how a command failed. A configuration that cannot be used is wrong usage. */
export function tellFailure(output: Output, error: unknown): number {
  const { side } = output;
  const noticed = asMigrationError(error);
  const failure = side === undefined ? noticed : noticed.from(side);
  output.failed(failure);
  const isUsage = failure.code === "CONFIGURATION_INVALID" && failure.at === side;
  return isUsage ? EXIT.usage : EXIT.failed;
}

/** Wrong usage, all problems at once. Throws CONFIGURATION_INVALID if there are any. */
export function checkUsage(problems: readonly string[]): void {
  if (problems.length > 0) throw new MigrationError("CONFIGURATION_INVALID", { problems });
}
