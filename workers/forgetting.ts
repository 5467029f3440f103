import type { Session } from "node:inspector/promises";
import { stepForward } from "./gate.ts";
import type { TaskReport } from "./protocol.ts";

/** Between one migration and the next, for a thread that has dropped all that it had of the first. */

/** Something failed before it was known what was to be closed in the end. */
let mayHoldMore = false;

/** What a thread opens for a channel. Where that fails half-way the thread serves no other migration. */
export function opened<T>(open: () => T): T {
  mayHoldMore = true;
  const all = open();
  mayHoldMore = false;
  return all;
}

/**
 * It stands where it stood in the scheduler's order, and may be kept. Throws where it may not: where it
 * may hold files, the system does not let it rise, or it could not be tidied.
 */
export function letGo(): TaskReport {
  if (mayHoldMore) throw new Error("it may have files open");
  if (!process.features.inspector) throw new Error("this Node cannot be told to collect garbage");
  stepForward();
  return { state: "done", pages: 0 };
}

/**
 * Frees what it cannot reach any more. It may wait for its next task for days, and runs nothing
 * meanwhile: what it had of a guest, memory and tables, would be held for as long.
 */
export async function tidy(): Promise<TaskReport> {
  const { Session } = await import("node:inspector/promises");
  const session: Session = new Session();
  session.connect();
  try {
    await session.post("HeapProfiler.collectGarbage");
  } finally {
    session.disconnect();
  }
  return { state: "done", pages: 0 };
}
