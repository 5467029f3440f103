import { must } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { between, opened } from "./between.ts";
import { areWorkersStopped, type Control, CounterRow, reviveChannel } from "./control.ts";
import { comeFirst } from "./gate.ts";
import { LaneReceiver } from "./lane-receiver.ts";
import { rehearse } from "./lane-rehearsal.ts";
import { LaneSender } from "./lane-sender.ts";
import { openLane } from "./lane-state.ts";
import { OPEN } from "./lane-words.ts";
import { booked } from "./page-sender.ts";
import type { ChannelPlace, LaneSetup, LaneTask, TaskReport } from "./protocol.ts";
import { rehearsed } from "./rehearsed.ts";
import { reportOf } from "./report.ts";

const checksum = await loadChecksum();
const NOTHING_MOVED: TaskReport = { state: "done", pages: 0 };
let setup: LaneSetup | null = null;

/** It rehearses once. */
let rehearsal: Promise<void> | null = null;

/** The thread of one priority lane, at either end. Its task `serve` lasts until its channel ends. */
export default async function work(task: LaneTask): Promise<TaskReport> {
  if (task.kind === "begin") {
    setup = task.setup;
    return NOTHING_MOVED;
  }
  if (task.kind === "ready" || task.kind === "rehearse") {
    // A migration that has it does not need it before its guest goes over; one that is to come may take long.
    const isAhead = task.kind === "ready";
    const isOver = (): boolean => (setup === null ? !isAhead : isWanted(setup));
    rehearsal ??= rehearsed(rehearse("lane", isOver));
    await rehearsal;
    return NOTHING_MOVED;
  }
  // Tasks do not wait for each other, and this one may take as long as a migration.
  await rehearsal;
  if (task.kind === "serve") return serve(must(setup, "a thread knows what it is for"), task.place);
  return await between(task.kind, () => {
    setup = null;
  });
}

/** Whether somebody may ask for a page, or the migration ends: nobody is to wait for a rehearsal. */
function isWanted(setup: LaneSetup): boolean {
  return Atomics.load(setup.words, OPEN) !== 0 || areWorkersStopped(controlOf(setup));
}

function serve(setup: LaneSetup, place: ChannelPlace): TaskReport {
  const counters = new CounterRow(controlOf(setup), place.channel - 1);
  return reportOf(() => {
    comeFirst();
    const lane = opened(() => laneOf(setup, place));
    try {
      booked(counters, () => lane.serve());
    } finally {
      lane.close();
    }
    return counters.read("pages");
  });
}

function controlOf(setup: LaneSetup): Control {
  return setup.side === "source" ? setup.send.control : setup.receive.control;
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
