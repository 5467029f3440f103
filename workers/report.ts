import { type Failure, MigrationError } from "../base/errors.ts";
import { Stopped } from "../channels/descriptor.ts";
import type { TaskDone, TaskReport } from "./protocol.ts";

/** Field failures become data; a broken belief rejects the task. `work` returns pages. */
export function reportOf(work: () => number | TaskDone): TaskReport {
  try {
    const done = work();
    return { state: "done", ...(typeof done === "number" ? { pages: done } : done) };
  } catch (error) {
    if (error instanceof Stopped) return { state: "stopped" };
    if (!(error instanceof MigrationError)) throw error;
    const { code, facts, at } = error as Failure;
    return { state: "failed", failure: at === undefined ? { code, facts } : { code, facts, at } };
  }
}
