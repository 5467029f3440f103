import { MIB, SECOND_MS } from "../../base/units.ts";
import { median } from "../measure.ts";
import type { Comparison } from "./comparison.ts";
import { MEMORY_KINDS } from "./enclosure.ts";
import { type Figure, formatRows, rowsOf } from "./figures.ts";
import { GUESTS } from "./guests.ts";
import type { Sample } from "./sample.ts";

export const FIGURES: readonly Figure<Sample>[] = [
  { name: "total time", unit: "ms", of: (sample) => sample.totalMs, goal: { atMost: 0.5 } },
  { name: "wall clock", unit: "ms", of: (sample) => sample.wallMs },
  { name: "CPU, both sides", unit: "s", of: cpuSecondsOf, goal: { atMost: 0.6 } },
  { name: "CPU, source", unit: "s", of: (sample) => sample.sourceCpuMs / SECOND_MS },
  { name: "CPU, destination", unit: "s", of: (sample) => sample.destinationCpuMs / SECOND_MS },
  { name: "on the wire", unit: "MiB", of: wireMibOf },
];

export function cpuSecondsOf({ sourceCpuMs, destinationCpuMs }: Sample): number {
  return (sourceCpuMs + destinationCpuMs) / SECOND_MS;
}

export function wireMibOf({ wireBytes }: Sample): number {
  return wireBytes / MIB;
}

export function titleOf({ guest, memory, compression, sizeBytes }: Comparison): string {
  const size = `${sizeBytes / MIB} MiB`;
  const { meaning } = MEMORY_KINDS[memory];
  return `${guest} (${size}: ${GUESTS[guest].meaning}), ${meaning}, compression ${compression}`;
}

/** For people: a line per figure. */
export function formatComparison(found: Comparison): string {
  const startMs = median(found.own.map(({ startCpuMs }) => startCpuMs));
  const note = `  Not counted: both processes' start, ${startMs.toFixed(0)} ms of CPU.`;
  return [titleOf(found), ...formatRows(rowsOf(FIGURES, found)), ...pumpNote(found), note, ""].join(
    "\n",
  );
}

/**
 * How much of QEMU's cost is left when memory is only read and moved. A pump ends when the last byte is in
 * its place, as by the clock both of QEMU's ends are done; its total time ends at the source.
 */
function pumpNote({ pump, qemu }: Comparison): string[] {
  if (pump.length === 0) return [];
  const ms = median(pump.map(({ elapsedMs }) => elapsedMs));
  const cpuS = median(pump.map(({ cpuMs }) => cpuMs)) / SECOND_MS;
  const ofQemu = (own: number, of: (sample: Sample) => number): string =>
    (own / median(qemu.map(of))).toFixed(2);
  const ofTotal = ofQemu(ms, ({ totalMs }) => totalMs);
  const ofWall = ofQemu(ms, ({ wallMs }) => wallMs);
  return [
    "  A bare pump that reads the same memory and moves what is not zero, from file to file, by the calls",
    `  and codecs that Node has: ${ms.toFixed(0)} ms, ${cpuS.toFixed(2)} s of CPU. Of QEMU's: ${ofTotal} of its total time,`,
    `  ${ofWall} by the clock, ${ofQemu(cpuS, cpuSecondsOf)} of its CPU.`,
  ];
}
