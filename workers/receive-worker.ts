import { workerData } from "piscina";
import { loadChecksum } from "../channels/checksum.ts";
import { CounterRow } from "./control.ts";
import { PageReceiver } from "./page-receiver.ts";
import { booked } from "./page-sender.ts";
import type { ReceiveSetup, ReceiveTask, TaskReport } from "./protocol.ts";
import { reportOf } from "./report.ts";

const setup = workerData as ReceiveSetup;
const checksum = await loadChecksum();

/** The thread of one channel at the destination. Its task `receive` lasts until END. */
export default function work(task: ReceiveTask): TaskReport {
  if (task.kind === "start") return reportOf(() => 0);
  const counters = new CounterRow(setup.control, task.place.channel - 1);
  return reportOf(() => {
    const receiver = new PageReceiver(setup, task.place, checksum);
    try {
      booked(counters, () => receiver.receive());
    } finally {
      receiver.close();
    }
    return counters.read("pages");
  });
}
