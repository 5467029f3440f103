import { must } from "../../base/assert.ts";
import { MIB, SECOND_MS } from "../../base/units.ts";
import { type Goal, isMet, listed, median } from "../measure.ts";
import type { Comparison } from "./comparison.ts";
import { MEMORY_KINDS } from "./enclosure.ts";
import { GUESTS } from "./guests.ts";
import type { Sample } from "./sample.ts";

/** One figure of both engines: medians, and what is wanted of their ratio. */
export interface Row {
  readonly name: string;
  readonly unit: string;
  readonly qemu: number;
  readonly multifd: number;
  /** Of the medians, ours by theirs. */
  readonly ratio: number;
  readonly ratios: readonly number[];
  readonly goal?: Goal;
  readonly met: boolean | null;
}

interface Figure {
  readonly name: string;
  readonly unit: string;
  readonly of: (sample: Sample) => number;
  readonly goal?: Goal;
}

const FIGURES: readonly Figure[] = [
  { name: "total time", unit: "ms", of: (sample) => sample.totalMs, goal: { atMost: 0.5 } },
  { name: "wall clock", unit: "ms", of: (sample) => sample.wallMs },
  { name: "CPU, both sides", unit: "s", of: cpuSecondsOf, goal: { atMost: 0.6 } },
  { name: "CPU, source", unit: "s", of: (sample) => sample.sourceCpuMs / SECOND_MS },
  { name: "CPU, destination", unit: "s", of: (sample) => sample.destinationCpuMs / SECOND_MS },
  { name: "on the wire", unit: "MiB", of: (sample) => sample.wireBytes / MIB },
];

function cpuSecondsOf({ sourceCpuMs, destinationCpuMs }: Sample): number {
  return (sourceCpuMs + destinationCpuMs) / SECOND_MS;
}

export function rowsOf({ qemu, multifd }: Comparison): Row[] {
  return FIGURES.map(({ name, unit, of, goal }) => {
    const [theirs, ours] = [qemu.map(of), multifd.map(of)];
    const ratio = median(ours) / median(theirs);
    const ratios = ours.map((value, pair) => value / must(theirs[pair], "samples come in pairs"));
    const met = isMet({ name, unit, value: ratio, ...(goal && { goal }) });
    const row = { name, unit, qemu: median(theirs), multifd: median(ours), ratio, ratios, met };
    return goal === undefined ? row : { ...row, goal };
  });
}

export function titleOf({ guest, memory, compression, sizeBytes }: Comparison): string {
  const size = `${sizeBytes / MIB} MiB`;
  const { meaning } = MEMORY_KINDS[memory];
  return `${guest} (${size}: ${GUESTS[guest].meaning}), ${meaning}, compression ${compression}`;
}

/** For people: a line per figure. */
export function formatComparison(found: Comparison): string {
  const lines = rowsOf(found).map(({ name, unit, qemu, multifd, ratio, ratios, goal, met }) => {
    const wanted = goal !== undefined && "atMost" in goal ? `<= ${goal.atMost}` : "";
    const columns = [
      `  ${name}`.padEnd(20),
      `${shown(qemu)} ${unit}`.padStart(12),
      `${shown(multifd)} ${unit}`.padStart(12),
      ratio.toFixed(2).padStart(7),
      wanted.padEnd(7),
      (met === null ? "" : met ? "met" : "MISS").padEnd(4),
      `by pair ${listed(ratios)}`,
    ];
    return columns.join(" ");
  });
  const head = `  ${"median".padEnd(18)} ${"QEMU".padStart(12)} ${"multifd".padStart(12)}   ratio`;
  const startMs = median(found.own.map(({ startCpuMs }) => startCpuMs));
  const note = `  Not counted: both processes' start, ${startMs.toFixed(0)} ms of CPU.`;
  return [titleOf(found), head, ...lines, note, ""].join("\n");
}

function shown(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
