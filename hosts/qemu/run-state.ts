import { Deadline, nowMs } from "../../base/clock.ts";
import { MigrationError } from "../../base/errors.ts";
import { isObject } from "../../base/object.ts";
import { ask } from "./answer.ts";
import type { Qmp } from "./qmp.ts";

const RUN_LIMIT_MS = 10_000;
const LOOK_MS = 20;

/**
 * Lets the guest run on, however QEMU's own migration of it ended. Harmless when it runs. Returns
 * when QEMU says that it began to, if it did so for this.
 */
export async function runOn(qmp: Qmp): Promise<number | undefined> {
  const deadline = new Deadline(RUN_LIMIT_MS);
  for (;;) {
    const state = (await ask(qmp, "query-status")).text("status");
    if (state === "running") return undefined;
    // QEMU is still about to end its migration, and will run it itself.
    if (state !== "finish-migrate") break;
    if (deadline.passed) {
      const facts = { waitingFor: "end of its migration", limitMs: RUN_LIMIT_MS };
      throw new MigrationError("HYPERVISOR_SILENT", facts);
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  let runningSinceMs: number | undefined;
  const unlisten = qmp.listen(({ name, atMs }) => {
    if (name === "RESUME") runningSinceMs = Math.min(atMs, nowMs());
  });
  try {
    await qmp.execute("cont"); // The event comes before the answer.
    return runningSinceMs;
  } finally {
    unlisten();
  }
}

/**
 * Gives a guest that was paused back as it was found. QEMU before 8.2 leaves it in "postmigrate",
 * from which it could not leave again; the only way out of that state is to run. Both commands are
 * there before QEMU looks at the first, so that its processors do next to nothing in between.
 */
export async function standStill(qmp: Qmp): Promise<void> {
  const state = (await ask(qmp, "query-status")).text("status");
  if (state === "postmigrate") await Promise.all([qmp.execute("cont"), qmp.execute("stop")]);
}

/**
 * Tells the network where the guest is. QEMU does so when it has loaded a guest, which is before
 * anybody knows where it will run.
 */
export async function announce(qmp: Qmp): Promise<void> {
  const words = { initial: 50, max: 550, rounds: 5, step: 100 };
  await qmp.execute("announce-self", words).catch(() => {}); // The guest runs; it will be found.
}

/** What the destination must know of how the guest was when it left. */
export interface RunState {
  readonly hasRun: boolean;
}

export function encodeRunState(state: RunState): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(state));
}

/** Undefined for what is none: it comes from the other end. */
export function decodeRunState(bytes: Uint8Array): RunState | undefined {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(bytes));
    return isObject(value) && typeof value["hasRun"] === "boolean"
      ? { hasRun: value["hasRun"] }
      : undefined;
  } catch {
    return undefined;
  }
}
