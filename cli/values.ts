import {
  GIB,
  HOUR_MS,
  KIB,
  MIB,
  MINUTE_MS,
  parseRate,
  parseSize,
  parseTime,
  SECOND_MS,
  TIB,
} from "../base/units.ts";
import { contains, type Domain } from "../engine/domain.ts";
import { flagOf, rowOf } from "../engine/parameters.ts";
import type { Wording } from "../engine/wording.ts";

export type FlagValue = number | boolean | string;

/** The value that `text` means in `domain`, or undefined when it means none. */
export function parseValue(domain: Domain, text: string): FlagValue | undefined {
  const value = read(domain, text);
  return contains(domain, value) ? value : undefined;
}

function read(domain: Domain, text: string): FlagValue | undefined {
  switch (domain.type) {
    case "boolean":
      return text === "true" ? true : text === "false" ? false : undefined;
    case "choice":
      return text;
    case "count":
      return digits(text);
    case "percent":
      return digits(text.endsWith("%") ? text.slice(0, -1) : text);
    case "bytes":
      return wholeBytes(measured(parseSize, text));
    case "bytesPerSecond":
      return measured(parseRate, text);
    case "milliseconds":
      return measured(parseTime, text);
    case "cores":
      return /^\d+(\.\d+)?$/.test(text) ? Number(text) : undefined;
  }
}

function digits(text: string): number | undefined {
  return /^\d+$/.test(text) ? Number(text) : undefined;
}

/** 1.3GiB is no whole number of bytes; nobody who writes it means a part of one. */
function wholeBytes(bytes: number | undefined): number | undefined {
  return bytes === undefined || bytes < KIB ? bytes : Math.floor(bytes);
}

function measured(parse: (text: string) => number, text: string): number | undefined {
  try {
    return parse(text);
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

const SIZES = { TiB: TIB, GiB: GIB, MiB: MIB, KiB: KIB, B: 1 };
const TIMES = { h: HOUR_MS, min: MINUTE_MS, s: SECOND_MS, ms: 1 };

/** The shortest exact text of a value: `parseValue` gives the same value back. */
export function formatValue(domain: Domain, value: FlagValue): string {
  if (typeof value !== "number" || value === 0) return String(value);
  switch (domain.type) {
    case "bytes":
      return inUnits(value, SIZES);
    case "bytesPerSecond":
      return `${inUnits(value, SIZES)}/s`;
    case "milliseconds":
      return inUnits(value, TIMES);
    default:
      return String(value);
  }
}

/** In the largest unit of which it is a whole number; the last unit takes everything. */
function inUnits(value: number, units: Readonly<Record<string, number>>): string {
  let text = String(value);
  for (const [unit, size] of Object.entries(units)) {
    text = `${value / size}${unit}`;
    if (value % size === 0) break;
  }
  return text;
}

/** For a shell: the flag as it is typed, and values as it takes them. */
export const AS_FLAGS: Wording = {
  name: (key) => `--${flagOf(key)}`,
  value: (key, value) => formatValue(rowOf(key), value),
  features: {
    memory: "--memory",
    qemu: "--qemu",
    pauseCommand: "--pause-command",
    resumeCommand: "--resume-command",
    memoryGuest: "--memory-guest",
    shape: "--size or another flag of the guest's shape",
    vcpus: "--vcpus",
    runFor: "--run-for",
  },
  number: formatValue,
  nouns: {
    count: "a whole number",
    bytes: "a size",
    bytesPerSecond: "a rate",
    milliseconds: "a time",
    percent: "a percentage",
    cores: "a number of cores",
  },
};
