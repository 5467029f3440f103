import type { Session } from "node:inspector/promises";
import { stepForward } from "./gate.ts";
import type { BetweenTask, TaskReport } from "./protocol.ts";

const DONE: TaskReport = { state: "done", pages: 0 };

/** Something failed before it was known what was to be closed in the end. */
let mayHoldMore = false;

/** What a thread does between one migration and the next. `drop` lets go of all that it has of the first. */
export function between(
  kind: Exclude<BetweenTask["kind"], "ready">,
  drop: () => void,
): TaskReport | Promise<TaskReport> {
  if (kind === "tidy") return collectGarbage();
  drop();
  checkWhole();
  return DONE;
}

/** What a thread opens for a channel. Where that fails half-way the thread serves no other migration. */
export function opened<T>(open: () => T): T {
  try {
    return open();
  } catch (error) {
    mayHoldMore = true;
    throw error;
  }
}

/**
 * It stands where it stood in the scheduler's order, and may be kept. Throws where it may not: where it
 * may hold files, the system does not let it rise, or it could not be tidied.
 */
function checkWhole(): void {
  if (mayHoldMore) throw new Error("it may have files open");
  if (!process.features.inspector) throw new Error("this Node cannot be told to collect garbage");
  stepForward();
}

/**
 * Frees what it cannot reach any more. It may wait for its next task for days, and runs nothing
 * meanwhile: what it had of a guest, memory and tables, would be held for as long.
 */
async function collectGarbage(): Promise<TaskReport> {
  const { Session } = await import("node:inspector/promises");
  const session: Session = new Session();
  session.connect();
  try {
    await session.post("HeapProfiler.collectGarbage");
  } finally {
    session.disconnect();
  }
  return DONE;
}
