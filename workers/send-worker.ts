import { workerData } from "piscina";
import { assert, must, unreachable } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { CounterRow } from "./control.ts";
import { booked, PageSender } from "./page-sender.ts";
import type { SendSetup, SendTask, TaskReport } from "./protocol.ts";
import { reportOf } from "./report.ts";

const setup = workerData as SendSetup;
const checksum = setup.hasChecksum ? await loadChecksum() : null;
let sender: { readonly pages: PageSender; readonly counters: CounterRow } | null = null;

/** The thread of one channel at the source. Piscina calls it once per task. */
export default function work(task: SendTask): TaskReport {
  if (task.kind === "open") {
    return reportOf(() => {
      assert(sender === null, "a thread has one channel");
      sender = {
        pages: new PageSender(setup, task.place, checksum),
        counters: new CounterRow(setup.control, task.place.channel - 1),
      };
      return 0;
    });
  }
  const { pages, counters } = must(sender, "a channel is opened before it is used");
  return reportOf(() => booked(counters, () => perform(pages, task)));
}

function perform(sender: PageSender, task: Exclude<SendTask, { kind: "open" }>): number {
  switch (task.kind) {
    case "send":
      return sender.send(task.block, task.chunks);
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
