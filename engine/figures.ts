import { must } from "../base/assert.ts";
import type { FaultsMessage, HypervisorLaps } from "../channels/messages.ts";
import { CODEC_WAYS } from "../workers/codec-choice.ts";
import {
  CODEC_COUNTERS,
  COUNTERS,
  type Control,
  type Counter,
  CounterRow,
  WAY_COUNTERS,
} from "../workers/control.ts";
import type {
  ChannelFigures,
  DowntimeFigures,
  FaultFigures,
  PageFigures,
  Report,
  WayFigures,
} from "./statistics.ts";

const NOTHING = Object.fromEntries(COUNTERS.map((counter) => [counter, 0])) as Record<
  Counter,
  number
>;

/** The counters of all channels together. */
export function sumCounters(control: Control, channels: number): Record<Counter, number> {
  const sums = { ...NOTHING };
  for (const row of rowsOf(control, channels)) {
    for (const counter of COUNTERS) sums[counter] += row.read(counter);
  }
  return sums;
}

/** Bulk channels first, then priority channels. `losses` says how often each connection was lost. */
export function channelFigures(
  control: Control,
  losses: readonly number[],
  lanes = 0,
): ChannelFigures[] {
  return rowsOf(control, losses.length + lanes).map((row, index) => ({
    id: index + 1,
    lane: index < losses.length ? "bulk" : "priority",
    losses: losses[index] ?? 0,
    sentBytes: row.read("movedBytes"),
    waitMs: row.read("waitMs"),
    busyMs: row.read("busyMs"),
    ways: {
      raw: wayFigures(row, "raw"),
      delta: wayFigures(row, "delta"),
      codec: wayFigures(row, "codec"),
    },
    delta: {
      hits: row.read("deltaHits"),
      misses: row.read("deltaMisses"),
      overflows: row.read("deltaOverflows"),
      evictions: row.read("deltaEvictions"),
      refusals: row.read("deltaRefusals"),
      beforeBytes: row.read("deltaBeforeBytes"),
      afterBytes: row.read("deltaAfterBytes"),
      choice: deltaChoiceText(row),
    },
    codec: {
      triedBytes: row.read("codecTriedBytes"),
      beforeBytes: row.read("codecBeforeBytes"),
      afterBytes: row.read("codecAfterBytes"),
      workMs: row.read("codecMs"),
      forcedFrames: row.read("codecForcedFrames"),
      choice: choiceText(row),
    },
    scan: { readBytes: row.read("scannedBytes"), workMs: row.read("scanMs") },
  }));
}

/** The figures of several legs of a migration, channel by channel. Each later leg began with a loss. */
export function channelsOfLegs(legs: readonly (readonly ChannelFigures[])[]): ChannelFigures[] {
  const byId = new Map<number, ChannelFigures>();
  for (const each of legs.flat()) {
    const before = byId.get(each.id);
    const both = before === undefined ? each : (addedUp(before, each) as ChannelFigures);
    const { id, lane, losses } = each;
    const again = before === undefined ? 0 : before.losses + 1;
    byId.set(id, { ...both, id, lane, losses: losses + again });
  }
  return [...byId.values()].sort((a, b) => a.id - b.id);
}

/** Figures of the same form, added; of texts the later one, if it says anything. */
export function addedUp<T extends object>(a: T, b: T): T {
  const keys = Object.keys(b) as (keyof T)[];
  const sums = keys.map((key) => {
    const [x, y] = [a[key], b[key]] as [unknown, unknown];
    if (typeof x === "number" && typeof y === "number") return [key, x + y];
    if (typeof x === "object" && x !== null) return [key, addedUp(x, y as object)];
    return [key, y === "" ? x : y];
  });
  return Object.fromEntries(sums) as T;
}

/** The main channel carries no pages, and nothing of it is compressed. */
export function mainChannelFigures(sentBytes: number): ChannelFigures {
  return {
    id: 0,
    lane: "main",
    losses: 0,
    sentBytes,
    waitMs: 0,
    busyMs: 0,
    ways: { raw: NOTHING_SENT, delta: NOTHING_SENT, codec: NOTHING_SENT },
    delta: {
      ...{ hits: 0, misses: 0, overflows: 0, evictions: 0, refusals: 0 },
      ...{ beforeBytes: 0, afterBytes: 0, choice: "" },
    },
    codec: {
      ...{ triedBytes: 0, beforeBytes: 0, afterBytes: 0, workMs: 0 },
      ...{ forcedFrames: 0, choice: "" },
    },
    scan: { readBytes: 0, workMs: 0 },
  };
}

const NOTHING_SENT: WayFigures = { pages: 0, sentBytes: 0 };

function wayFigures(row: CounterRow, way: keyof typeof WAY_COUNTERS): WayFigures {
  const { pages, bytes } = WAY_COUNTERS[way];
  return { pages: row.read(pages), sentBytes: row.read(bytes) };
}

/** What auto did about deltas, and the figures that decided it; empty where it compared nothing. */
function deltaChoiceText(row: CounterRow): string {
  const choice = row.read("deltaChoice");
  if (choice === 0) return "";
  const costs = [
    `comparing ${costText(row, "deltaComparingMsPerMiB", "not known")}`,
    `sending without ${costText(row, "deltaWholeMsPerMiB", "not known")}`,
    `changed ${row.read("deltaChoiceChanges")} times`,
  ];
  const passed = `${row.read("deltaPassedPages")} pages passed over`;
  return `${choice === 1 ? "deltas" : "no deltas"}: ${costs.join(", ")}; ${passed}`;
}

function costText(row: CounterRow, counter: Counter, none = "not tried"): string {
  const ms = row.read(counter);
  return ms === 0 ? none : `${ms.toFixed(2)} ms per MiB`;
}

/** What auto chose, and the figures that decided it; empty where nothing was chosen. */
function choiceText(row: CounterRow): string {
  const way = row.read("choiceWay");
  if (way === 0) return "";
  const cost = (counter: Counter): string => costText(row, counter);
  const codec = codecWayName(row.read("choiceCodec"));
  const changes = row.read("choiceChanges") + row.read("choiceCodecChanges");
  const costs = `raw ${cost("choiceRawMsPerMiB")}, compressed ${cost("choiceCodecMsPerMiB")}`;
  const samples = CODEC_COUNTERS.flatMap(({ ms, share }, index) => {
    if (row.read(share) === 0) return [];
    return [`${codecWayName(index)} to ${row.read(share).toFixed(2)} in ${cost(ms)}`];
  });
  const looks = samples.length === 0 ? "" : `; samples by ${samples.join(", ")}`;
  return `${way === 1 ? "raw" : codec}: ${costs}, changed ${changes} times${looks}`;
}

function codecWayName(index: number): string {
  const { codec, level } = must(CODEC_WAYS[index], "a choice is of the rows that there are");
  return level === null ? codec.name : `${codec.name} ${level}`;
}

export function pageFigures(counters: Record<Counter, number>, untouched: number): PageFigures {
  const { zero, unchanged, delta, compressed, raw } = counters;
  return { zero, unchanged, delta, compressed, raw, untouched };
}

/**
 * Pages that went out in frames. The counter `pages` knows tasks that were done, and so nothing of the
 * one that a connection was lost in.
 */
export function framedPages(counters: Record<Counter, number>): number {
  const { zero, unchanged, delta, compressed, raw } = counters;
  return zero + unchanged + delta + compressed + raw;
}

function rowsOf(control: Control, channels: number): CounterRow[] {
  return Array.from({ length: channels }, (_, index) => new CounterRow(control, index));
}

/** The report's part on hypervisors, if they told: with what the engine measured itself. */
export function hypervisorReport(
  { syncMs, pagesMs, devicesMs }: DowntimeFigures,
  laps: HypervisorLaps | null,
): Pick<Report, "hypervisor"> {
  if (laps === null) return {};
  const { stopMs, saveMs, resumeMs } = laps;
  const downtimeMs = stopMs + syncMs + pagesMs + devicesMs + resumeMs;
  const loadMs = Math.max(0, devicesMs - saveMs);
  const hypervisor = { downtimeMs, stopMs, pagesMs: syncMs + pagesMs, saveMs, loadMs, resumeMs };
  return { hypervisor };
}

/** As a report has them. */
export function faultFigures({ stages, vcpus }: FaultsMessage): FaultFigures {
  const { total, ...others } = stages;
  const blockedMs = vcpus.reduce((sum, each) => sum + each.blockedMs, 0);
  return { ...total, blockedMs, vcpus, stages: others };
}
