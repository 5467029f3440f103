import type { Origin } from "../base/errors.ts";
import { formatBytes, formatMs } from "../base/units.ts";
import type { Progress } from "../engine/statistics.ts";

/** Phases that take rounds; the others are over in a moment and say their name. */
const ROUND_PHASES: ReadonlySet<string> = new Set(["precopy", "receive"]);

const BAR_COLUMNS_MIN = 8;
const BAR_COLUMNS_MAX = 24;

/** The bar leaves so much room for text: round, dirty, rate and expected downtime. */
const TEXT_COLUMNS = 67;

/** How far a migration is, as a line of a log. */
export function progressText(progress: Progress, side: Origin | undefined): string {
  const where = ROUND_PHASES.has(progress.phase)
    ? `${progress.phase}, round ${progress.round}`
    : progress.phase;
  return [where, ...partsOf(progress, side)].join(", ");
}

/**
 * The same as a line of a terminal, in at most so many columns: a bar, and the parts that fit, the
 * important ones first.
 */
export function progressLine(
  progress: Progress,
  side: Origin | undefined,
  columns: number,
): string {
  const { phase, round } = progress;
  const spare = Math.max(BAR_COLUMNS_MIN, columns - TEXT_COLUMNS);
  const drawn = bar(shareOf(progress, side), Math.min(BAR_COLUMNS_MAX, spare));
  const parts = [ROUND_PHASES.has(phase) ? `round ${round}` : phase, ...partsOf(progress, side)];
  const lineOf = (): string => `${drawn} ${parts.join(", ")}`;
  while (parts.length > 1 && lineOf().length > columns) parts.pop();
  return lineOf().slice(0, columns);
}

/** The important ones first. */
function partsOf(progress: Progress, side: Origin | undefined): string[] {
  const { expectedDowntimeMs, throttlePercent, sentBytes, totalBytes, deviceBytes } = progress;
  const rate = `${formatBytes(progress.bytesPerSecond)}/s`;
  if (side === "destination") {
    return [
      rate,
      ...waitsOf(progress),
      `received ${formatBytes(sentBytes)} for a guest of ${formatBytes(totalBytes)}`,
    ];
  }
  const parts = [`dirty ${formatBytes(progress.dirtyBytes)}`, rate];
  if (expectedDowntimeMs !== null && Number.isFinite(expectedDowntimeMs)) {
    parts.push(`expected downtime ${formatMs(expectedDowntimeMs)}`);
  }
  if (throttlePercent > 0) parts.push(`guest throttled ${throttlePercent} %`);
  if (deviceBytes > 0) parts.push(`devices ${formatBytes(deviceBytes)}`);
  return [...parts, `sent ${formatBytes(sentBytes)}`];
}

/** Of all that JSON tells of faults, what a line has room for. */
function waitsOf({ faults }: Progress): string[] {
  const { count, p50Us, p99Us } = faults ?? {};
  if (count === undefined || p50Us === undefined || p99Us === undefined) return [];
  return [`${count} faults, p50 ${formatMs(p50Us / 1000)}, p99 ${formatMs(p99Us / 1000)}`];
}

/**
 * At the source, how much of the guest is clean: what is left shrinks round by round. A destination
 * does not know what is dirty, only what has come.
 */
function shareOf(progress: Progress, side: Origin | undefined): number {
  const { dirtyBytes, sentBytes, totalBytes } = progress;
  // A destination does not know yet how large the guest is.
  if (totalBytes === 0) return side === "destination" ? 0 : 1;
  return side === "destination" ? sentBytes / totalBytes : 1 - dirtyBytes / totalBytes;
}

function bar(share: number, columns: number): string {
  const full = Math.round(Math.min(1, Math.max(0, share)) * columns);
  return `[${"=".repeat(full)}${" ".repeat(columns - full)}]`;
}
