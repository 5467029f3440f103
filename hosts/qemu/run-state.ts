import { Deadline } from "../../base/clock.ts";
import { MigrationError } from "../../base/errors.ts";
import { ask } from "./answer.ts";
import { isObject, type Qmp } from "./qmp.ts";

const RUN_LIMIT_MS = 10_000;
const LOOK_MS = 20;

/** Lets the guest run on, however QEMU's own migration of it ended. Harmless when it runs. */
export async function runOn(qmp: Qmp): Promise<void> {
  const deadline = new Deadline(RUN_LIMIT_MS);
  for (;;) {
    const state = (await ask(qmp, "query-status")).text("status");
    if (state === "running") return;
    // QEMU is still about to end its migration, and will run it itself.
    if (state !== "finish-migrate") break;
    if (deadline.passed) {
      const facts = { waitingFor: "end of its migration", limitMs: RUN_LIMIT_MS };
      throw new MigrationError("HYPERVISOR_SILENT", facts);
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  await qmp.execute("cont");
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
