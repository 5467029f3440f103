export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

export const SECOND_MS = 1000;
export const MINUTE_MS = 60 * SECOND_MS;
export const HOUR_MS = 60 * MINUTE_MS;

const SIZES: Readonly<Record<string, number>> = { B: 1, KiB: KIB, MiB: MIB, GiB: GIB, TiB: TIB };
const TIMES: Readonly<Record<string, number>> = {
  us: 0.001,
  ms: 1,
  s: SECOND_MS,
  min: MINUTE_MS,
  h: HOUR_MS,
};

/** Reads "64MiB", "4096" (bytes). Throws RangeError with what would be right. */
export function parseSize(text: string): number {
  return parse(text, SIZES, "a size such as 4096, 64KiB, 2MiB or 1GiB");
}

/** Reads "100MiB/s", "0" (bytes per second). */
export function parseRate(text: string): number {
  const bare = text.endsWith("/s") ? text.slice(0, -2) : text;
  if (bare === text && !/^\d+$/.test(text))
    throw new RangeError(`"${text}" is not a rate such as 100MiB/s`);
  return parse(bare, SIZES, "a rate such as 100MiB/s");
}

/** Reads "300ms", "2s", "500us"; a bare number is milliseconds. */
export function parseTime(text: string): number {
  return parse(text, { "": 1, ...TIMES }, "a time such as 300ms or 2s");
}

function parse(text: string, units: Readonly<Record<string, number>>, wanted: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text);
  const name = match?.[2] || (Object.hasOwn(units, "") ? "" : "B");
  const unit = Object.hasOwn(units, name) ? units[name] : undefined;
  if (match === null || unit === undefined) throw new RangeError(`"${text}" is not ${wanted}`);
  return Number(match[1]) * unit;
}

/** For people: "1.50 GiB". */
export function formatBytes(bytes: number): string {
  for (const [unit, size] of [
    ["TiB", TIB],
    ["GiB", GIB],
    ["MiB", MIB],
    ["KiB", KIB],
  ] as const) {
    if (bytes >= size) return `${trim(bytes / size)} ${unit}`;
  }
  return `${Math.round(bytes)} B`;
}

/** For people: "12.3 ms", "4.56 s". */
export function formatMs(ms: number): string {
  if (ms >= MINUTE_MS) return `${trim(ms / MINUTE_MS)} min`;
  if (ms >= SECOND_MS) return `${trim(ms / SECOND_MS)} s`;
  if (ms >= 1 || ms === 0) return `${trim(ms)} ms`;
  return `${trim(ms * 1000)} us`;
}

function trim(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
