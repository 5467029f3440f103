import { readdirSync, readlinkSync } from "node:fs";
import { Deadline } from "../../base/clock.ts";

/** What this process holds: threads, descriptors, and what keeps its event loop alive. */
export interface Holdings {
  readonly threads: number;
  readonly descriptors: number;
  readonly resources: Readonly<Record<string, number>>;
}

/** Closing is told to the kernel at once but shows a few turns of the event loop later. */
const LIMIT_MS = 10_000;

/** What is held now, if anything of it was not held before and stays; null otherwise. */
export async function addedTo(before: Holdings): Promise<Holdings | null> {
  const deadline = new Deadline(LIMIT_MS);
  while (!deadline.passed && exceeds(holdings(), before)) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  const after = holdings();
  return exceeds(after, before) ? after : null;
}

export function holdings(): Holdings {
  const resources: Record<string, number> = {};
  for (const name of process.getActiveResourcesInfo()) {
    // The check itself turns the event loop by immediates.
    if (name !== "Immediate") resources[name] = (resources[name] ?? 0) + 1;
  }
  return {
    threads: readdirSync("/proc/self/task").length,
    descriptors: descriptors().length,
    resources,
  };
}

/** Open ones, without the one by which the folder is read. */
function descriptors(): string[] {
  return readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) !== "";
    } catch {
      return false;
    }
  });
}

function exceeds(after: Holdings, before: Holdings): boolean {
  return (
    after.threads > before.threads ||
    after.descriptors > before.descriptors ||
    Object.entries(after.resources).some(([name, count]) => count > (before.resources[name] ?? 0))
  );
}
