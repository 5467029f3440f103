import { must, unreachable } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { between, opened } from "./between.ts";
import { CounterRow } from "./control.ts";
import { rehearsePages } from "./page-rehearsal.ts";
import { booked, PageSender } from "./page-sender.ts";
import type { SendSetup, SendTask, TaskDone, TaskReport } from "./protocol.ts";
import { rehearsed } from "./rehearsed.ts";
import { reportOf } from "./report.ts";

const checksum = await loadChecksum();
const NOTHING_MOVED: TaskReport = { state: "done", pages: 0 };
let setup: SendSetup | null = null;
let sender: { readonly pages: PageSender; readonly counters: CounterRow } | null = null;

/** When the task before is answered. */
let turn: Promise<unknown> = Promise.resolve();

/**
 * The thread of one channel at the source. Piscina calls it once per task, also with two at a time
 * when both are there. A task then waits until the other one is answered, a microtask after its
 * end: answered together, both would be done before the coordinator heard of the first, and the
 * thread would idle until the next one comes.
 */
export default function work(task: SendTask): Promise<TaskReport> {
  const report = turn.then(() => perform(task));
  turn = report.catch(() => {}); // Piscina gets the rejection, as the answer.
  return report;
}

function perform(task: SendTask): TaskReport | Promise<TaskReport> {
  if (task.kind === "ready") return learn(task.wanted);
  if (task.kind === "forget" || task.kind === "tidy") {
    return between(task.kind, () => {
      sender?.pages.close();
      sender = null;
      setup = null;
    });
  }
  if (task.kind === "begin") {
    setup = task.setup;
    return NOTHING_MOVED;
  }
  if (task.kind === "open") {
    const known = must(setup, "a thread knows what it is for");
    return reportOf(() => {
      // There was one before if its connection was lost. What it remembers was for that one.
      sender?.pages.close();
      sender = null;
      sender = {
        pages: opened(() => new PageSender(known, task.place, known.hasChecksum ? checksum : null)),
        counters: new CounterRow(known.control, task.place.channel - 1),
      };
      return 0;
    });
  }
  const { pages, counters } = must(sender, "a channel is opened before it is used");
  return reportOf(() => booked(counters, () => move(pages, task)));
}

/** Until a migration has this thread. */
async function learn(wanted: Int32Array): Promise<TaskReport> {
  await rehearsed(rehearsePages("source", () => Atomics.load(wanted, 0) !== 0));
  return NOTHING_MOVED;
}

function move(
  sender: PageSender,
  task: Exclude<SendTask, { kind: "ready" | "forget" | "tidy" | "begin" | "open" }>,
): number | TaskDone {
  switch (task.kind) {
    case "send": {
      const pages = sender.send(task.block, task.chunks, task.round, task.part);
      return { pages, left: sender.left };
    }
    case "scan":
      sender.scan(task.tables);
      return 0;
    case "look":
      return sender.look(task);
    case "fence":
      sender.fence(task.number);
      return 0;
    case "end":
      sender.end();
      return 0;
    default:
      return unreachable(task);
  }
}
