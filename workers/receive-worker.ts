import { must } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { between, opened } from "./between.ts";
import { CounterRow } from "./control.ts";
import { PageReceiver } from "./page-receiver.ts";
import { rehearsePages } from "./page-rehearsal.ts";
import { booked } from "./page-sender.ts";
import type { ReceiveSetup, ReceiveTask, TaskReport } from "./protocol.ts";
import { rehearsed } from "./rehearsed.ts";
import { reportOf } from "./report.ts";

const checksum = await loadChecksum();
const NOTHING_MOVED: TaskReport = { state: "done", pages: 0 };
let setup: ReceiveSetup | null = null;
let rehearsal: Promise<void> | null = null;

/** The thread of one channel at the destination. Its task `receive` lasts until END. */
export default async function work(task: ReceiveTask): Promise<TaskReport> {
  if (task.kind === "ready") {
    rehearsal = rehearsed(rehearsePages("destination", () => Atomics.load(task.wanted, 0) !== 0));
    await rehearsal;
    return NOTHING_MOVED;
  }
  // Tasks do not wait for each other, and `receive` may take as long as a migration.
  await rehearsal;
  if (task.kind === "forget" || task.kind === "tidy") {
    return await between(task.kind, () => {
      setup = null;
    });
  }
  if (task.kind === "begin") {
    setup = task.setup;
    return NOTHING_MOVED;
  }
  const known = must(setup, "a thread knows what it is for");
  const counters = new CounterRow(known.control, task.place.channel - 1);
  return reportOf(() => {
    const receiver = opened(() => new PageReceiver(known, task.place, checksum));
    try {
      booked(counters, () => receiver.receive());
    } finally {
      receiver.close();
    }
    return counters.read("pages");
  });
}
