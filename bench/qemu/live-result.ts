import { median } from "../measure.ts";
import { type Figure, formatRows, type Row, rowsOf } from "./figures.ts";
import { DOWNTIME_LIMIT_MS, type LiveComparison } from "./live-comparison.ts";
import type { LiveSample } from "./live-move.ts";
import { cpuSecondsOf, wireMibOf } from "./result.ts";

const TOTAL_GOAL = { atMost: 1 };
const DOWNTIME_GOAL = { atMost: DOWNTIME_LIMIT_MS };
/** By itself `auto` weighs bytes against time for a QEMU's guest; for time alone, raw memory is faster. */
const WIRE_GOAL = { atMost: 0.5 };

export function liveRowsOf(found: LiveComparison): Row[] {
  return rowsOf(figuresOf(found), found);
}

function figuresOf({ compression }: LiveComparison): Figure<LiveSample>[] {
  const wire = { name: "on the wire", unit: "MiB", of: wireMibOf };
  return [
    { name: "total time", unit: "ms", of: (sample) => sample.totalMs, goal: TOTAL_GOAL },
    { name: "wall clock", unit: "ms", of: (sample) => sample.wallMs },
    {
      ...{ name: "STOP to RESUME", unit: "ms", of: (sample) => sample.pauseMs },
      ...{ goal: DOWNTIME_GOAL, judged: "multifd" },
    },
    { name: "downtime, as told", unit: "ms", of: (sample) => sample.downtimeMs },
    compression === "auto" ? { ...wire, goal: WIRE_GOAL } : wire,
    { name: "CPU, both sides", unit: "s", of: cpuSecondsOf },
  ];
}

export function titleOfLive({ guest, compression }: LiveComparison): string {
  const { memoryMib, work } = guest;
  const { sizeMib = 0, rateMib = 0, usedMib = 0, noisePercent = 0 } = work;
  const busy = `rewrites ${sizeMib} MiB at ${rateMib} MiB/s and holds ${usedMib} MiB more, ${noisePercent} % noise`;
  return `live guest (${memoryMib} MiB: ${busy}), compression ${compression}`;
}

/** For people: a line per figure, and where our own time went. */
export function formatLive(found: LiveComparison): string {
  const own = found.multifd.flatMap((sample) => sample.own?.source ?? []);
  const of = (pick: (report: (typeof own)[number]) => number | undefined): string =>
    median(own.map((report) => pick(report) ?? 0)).toFixed(0);
  const note =
    `  Ours: ${of(({ rounds }) => rounds.length)} rounds; of the downtime ` +
    `stop ${of(({ hypervisor }) => hypervisor?.stopMs)}, pages ${of(({ hypervisor }) => hypervisor?.pagesMs)}, ` +
    `save ${of(({ hypervisor }) => hypervisor?.saveMs)}, load ${of(({ hypervisor }) => hypervisor?.loadMs)}, ` +
    `resume ${of(({ hypervisor }) => hypervisor?.resumeMs)} ms.`;
  const harmed = found.qemu.filter(({ isHarmed }) => isHarmed).length;
  const lost = `  QEMU's: of ${found.qemu.length} guests ${harmed} did not survive.`;
  const notes = harmed === 0 ? [note] : [note, lost];
  return [titleOfLive(found), ...formatRows(liveRowsOf(found)), ...notes, ""].join("\n");
}
