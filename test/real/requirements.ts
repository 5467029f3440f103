import { existsSync, statfsSync } from "node:fs";
import { freemem } from "node:os";
import { formatBytes } from "../../base/units.ts";

/** Guest memory lives where a hypervisor puts it, not on a disk. */
export const MEMORY_FOLDER = "/dev/shm";

/** What a suite on the real thing does on this machine. */
export interface Readiness {
  readonly missing: readonly string[];
  readonly isSkipped: boolean;
  /** To be put behind the suite's name, so that nobody overlooks what was not tested. */
  readonly because: string;
}

/**
 * Where something is missing a suite is skipped, and says so loudly. Where nobody reads what is
 * said, it must fail instead: `isSkipped` is false then.
 */
export function decideReadiness(suite: string, missing: readonly string[]): Readiness {
  const isSkipped = missing.length > 0 && !isContinuousIntegration();
  const because =
    missing.length > 0 ? ` (${isSkipped ? "SKIPPED, " : ""}missing: ${missing.join("; ")})` : "";
  if (isSkipped) process.stderr.write(`\n*** NOT TESTED: ${suite}${because} ***\n\n`);
  return { missing, isSkipped, because };
}

/** Empty when there is so much room for guest memory. */
export function missingRoom(wantedBytes: number): string[] {
  const { bavail, bsize } = existsSync(MEMORY_FOLDER)
    ? statfsSync(MEMORY_FOLDER)
    : { bavail: 0, bsize: 0 };
  const freeBytes = bavail * bsize;
  if (freeBytes >= wantedBytes) return [];
  return [
    `${formatBytes(wantedBytes)} of room in ${MEMORY_FOLDER} (${formatBytes(freeBytes)} free)`,
  ];
}

/** Empty when a process can have so much memory of its own. */
export function missingMemory(wantedBytes: number): string[] {
  const freeBytes = freemem();
  if (freeBytes >= wantedBytes) return [];
  return [`${formatBytes(wantedBytes)} of memory (${formatBytes(freeBytes)} free)`];
}

/** Where nobody reads the output, what is not tested must fail. */
export function isContinuousIntegration(): boolean {
  return !["", "0", "false"].includes(process.env["CI"] ?? "");
}
