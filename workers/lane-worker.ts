import { parentPort, workerData } from "node:worker_threads";
import { must } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { CounterRow } from "./control.ts";
import { comeFirst } from "./gate.ts";
import { LaneReceiver } from "./lane-receiver.ts";
import { LaneSender } from "./lane-sender.ts";
import { booked } from "./page-sender.ts";
import type { ChannelPlace, LaneSetup } from "./protocol.ts";
import { reportOf } from "./report.ts";

/**
 * The thread of one priority lane. No pool and no queue: it gets its channel in one message, serves
 * it until it ends, and answers with one report.
 */
const setup = workerData as LaneSetup;
const checksum = await loadChecksum();
const coordinator = must(parentPort, "a lane is a thread");

coordinator.once("message", (place: ChannelPlace) => {
  const { control } = setup.side === "source" ? setup.send : setup.receive;
  const counters = new CounterRow(control, place.channel - 1);
  const report = reportOf(() => {
    comeFirst();
    const lane = laneOf(place);
    try {
      booked(counters, () => lane.serve());
    } finally {
      lane.close();
    }
    return counters.read("pages");
  });
  coordinator.postMessage(report);
});
coordinator.postMessage("ready");

function laneOf(place: ChannelPlace): LaneSender | LaneReceiver {
  if (setup.side === "source") {
    const { send, words, served } = setup;
    return new LaneSender(send, place, {
      words,
      served,
      checksum: send.hasChecksum ? checksum : null,
    });
  }
  const { receive, words, lane, lanes } = setup;
  return new LaneReceiver(receive, place, { checksum, words, lane, lanes });
}
