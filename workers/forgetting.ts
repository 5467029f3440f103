import type { Session } from "node:inspector/promises";
import { stepForward } from "./gate.ts";
import type { TaskReport } from "./protocol.ts";

/** Between one migration and the next, for a thread that has dropped all that it had of the first. */

/**
 * It stands where it stood in the scheduler's order, and may be kept. Throws where it may not: where the
 * system does not let it rise, or where it could not be tidied.
 */
export function letGo(): TaskReport {
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
