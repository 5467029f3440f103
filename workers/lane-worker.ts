import { must } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { between, opened } from "./between.ts";
import { CounterRow, isOver, reviveChannel } from "./control.ts";
import { comeFirst } from "./gate.ts";
import { LaneReceiver } from "./lane-receiver.ts";
import { LaneSender } from "./lane-sender.ts";
import { openLane } from "./lane-state.ts";
import { OPEN } from "./lane-words.ts";
import { booked } from "./page-sender.ts";
import type { ChannelPlace, LaneSetup, LaneTask, TaskReport } from "./protocol.ts";
import { rehearse } from "./rehearsal.ts";
import { reportOf } from "./report.ts";

const checksum = await loadChecksum();
const NOTHING_MOVED: TaskReport = { state: "done", pages: 0 };
let setup: LaneSetup | null = null;

/** It has begun to, and does so once. */
let hasRehearsed = false;

/** The thread of one priority lane, at either end. Its task `serve` lasts until its channel ends. */
export default function work(task: LaneTask): TaskReport | Promise<TaskReport> {
  if (task.kind === "ready") return rehearsed(() => false);
  if (task.kind === "forget" || task.kind === "tidy") {
    return between(task.kind, () => {
      setup = null;
    });
  }
  if (task.kind === "begin") {
    setup = task.setup;
    return NOTHING_MOVED;
  }
  const known = must(setup, "a thread knows what it is for");
  const { control } = known.side === "source" ? known.send : known.receive;
  if (task.kind === "rehearse") {
    const { words } = known;
    return rehearsed(() => Atomics.load(words, OPEN) !== 0 || isOver(control));
  }
  const counters = new CounterRow(control, task.place.channel - 1);
  return reportOf(() => {
    comeFirst();
    const lane = opened(() => laneOf(known, task.place));
    try {
      booked(counters, () => lane.serve());
    } finally {
      lane.close();
    }
    return counters.read("pages");
  });
}

/** Until somebody may ask for a page, for nobody is to wait for that. */
async function rehearsed(isOver: () => boolean): Promise<TaskReport> {
  if (!hasRehearsed) {
    hasRehearsed = true;
    try {
      await rehearse("lane", isOver);
    } catch {
      // The first pages take longer.
    }
  }
  return NOTHING_MOVED;
}

function laneOf(setup: LaneSetup, place: ChannelPlace): { serve(): void; close(): void } {
  if (setup.side === "source") {
    const { send, words, served } = setup;
    return new LaneSender(send, place, {
      words,
      served,
      checksum: send.hasChecksum ? checksum : null,
    });
  }
  const { receive, words, state, lane, lanes } = setup;
  const receiver = new LaneReceiver(receive, place, { checksum, state, lane, lanes });
  const others = receive.door?.lanes?.receive.control;
  if (others !== undefined) reviveChannel(others, place.channel);
  openLane(state, place);
  return { serve: () => receiver.serve(words), close: () => receiver.close() };
}
