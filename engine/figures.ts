import { COUNTERS, type Control, type Counter, CounterRow } from "../workers/control.ts";
import type { ChannelFigures, PageFigures } from "./statistics.ts";

/** The counters of all channels together. */
export function sumCounters(control: Control, channels: number): Record<Counter, number> {
  const rows = rowsOf(control, channels);
  const sums = COUNTERS.map((counter) => [
    counter,
    rows.reduce((sum, row) => sum + row.read(counter), 0),
  ]);
  return Object.fromEntries(sums) as Record<Counter, number>;
}

export function channelFigures(control: Control, channels: number): ChannelFigures[] {
  return rowsOf(control, channels).map((row, index) => ({
    id: index + 1,
    lane: "bulk",
    sentBytes: row.read("movedBytes"),
    waitMs: row.read("waitMs"),
    busyMs: row.read("busyMs"),
  }));
}

export function pageFigures(counters: Record<Counter, number>, untouched: number): PageFigures {
  const { zero, unchanged, delta, compressed, raw } = counters;
  return { zero, unchanged, delta, compressed, raw, untouched };
}

function rowsOf(control: Control, channels: number): CounterRow[] {
  return Array.from({ length: channels }, (_, index) => new CounterRow(control, index));
}
