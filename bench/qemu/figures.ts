import { must } from "../../base/assert.ts";
import { type Goal, isMet, listed, median } from "../measure.ts";

/** One figure that both engines' samples have. */
export interface Figure<S> {
  readonly name: string;
  readonly unit: string;
  readonly of: (sample: S) => number;
  readonly goal?: Goal;
  /** What the goal is for: ours by QEMU's, or ours alone. */
  readonly judged?: "ratio" | "multifd";
}

/** A figure of both engines: medians, and what is wanted. */
export interface Row {
  readonly name: string;
  readonly unit: string;
  readonly qemu: number;
  readonly multifd: number;
  /** Of the medians, ours by theirs. */
  readonly ratio: number;
  readonly ratios: readonly number[];
  readonly judged: "ratio" | "multifd";
  readonly goal?: Goal;
  readonly met: boolean | null;
}

/** Samples in the order in which they were taken, so that those of the same index are a pair. */
export interface Samples<S> {
  readonly qemu: readonly S[];
  readonly multifd: readonly S[];
}

export function rowsOf<S>(figures: readonly Figure<S>[], { qemu, multifd }: Samples<S>): Row[] {
  return figures.map(({ name, unit, of, goal, judged = "ratio" }) => {
    const [theirs, ours] = [qemu.map(of), multifd.map(of)];
    const medians = { qemu: median(theirs), multifd: median(ours) };
    const ratio = medians.multifd / medians.qemu;
    const ratios = ours.map((value, pair) => value / must(theirs[pair], "samples come in pairs"));
    const value = judged === "ratio" ? ratio : medians.multifd;
    const met = isMet({ name, unit, value, ...(goal && { goal }) });
    return { name, unit, ...medians, ratio, ratios, judged, met, ...(goal && { goal }) };
  });
}

/** For people: a line per figure, under a head. */
export function formatRows(rows: readonly Row[]): string[] {
  const head = `  ${"median".padEnd(18)} ${"QEMU".padStart(12)} ${"multifd".padStart(12)}   ratio`;
  return [head, ...rows.map(formatRow)];
}

function formatRow(row: Row): string {
  const { name, unit, qemu, multifd, ratio, ratios, met } = row;
  const columns = [
    `  ${name}`.padEnd(20),
    `${shown(qemu)} ${unit}`.padStart(12),
    `${shown(multifd)} ${unit}`.padStart(12),
    ratio.toFixed(2).padStart(7),
    wanted(row).padEnd(9),
    (met === null ? "" : met ? "met" : "MISS").padEnd(4),
    `by pair ${listed(ratios)}`,
  ];
  return columns.join(" ");
}

function wanted({ goal, judged, unit }: Row): string {
  if (goal === undefined) return "";
  const bound = "atMost" in goal ? `<= ${goal.atMost}` : `>= ${goal.atLeast}`;
  return judged === "ratio" ? bound : `${bound} ${unit}`;
}

function shown(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
