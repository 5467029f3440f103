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
 * How much of QEMU's cost is left when only the bytes are moved. A pump ends when the last byte is in
 * its place, so its time is compared with the one after which both of QEMU's ends are done.
 */
function pumpNote({ pump, qemu }: Comparison): string[] {
  if (pump.length === 0) return [];
  const ms = median(pump.map(({ elapsedMs }) => elapsedMs));
  const cpuMs = median(pump.map((each) => each.cpuMs));
  const ofTime = ms / median(qemu.map(({ wallMs }) => wallMs));
  const ofCpu = cpuMs / SECOND_MS / median(qemu.map(cpuSecondsOf));
  return [
    `  A bare pump of the same bytes from file to file, by the calls and codecs that Node has: ${ms.toFixed(0)} ms,`,
    `  ${(cpuMs / SECOND_MS).toFixed(2)} s of CPU: ${ofTime.toFixed(2)} of QEMU's by the clock and ${ofCpu.toFixed(2)} of its CPU.`,
  ];
}
