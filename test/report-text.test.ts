import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import { reportText } from "../cli/report-text.ts";
import { mainChannelFigures } from "../engine/figures.ts";
import type { ChannelFigures, Report } from "../engine/statistics.ts";

const [MAIN, BULK] = [mainChannelFigures(100), { ...mainChannelFigures(5 * MIB), id: 1 }];

/** What a report's text says under a name, of channels that sent what `changes` say. */
function linesOf(name: string, changes: Partial<ChannelFigures>, count = 1): string[] {
  const bulk = Array.from({ length: count }, (_, index) => {
    return { ...BULK, lane: "bulk", ...changes, id: index + 1 } as const;
  });
  const report: Report = {
    totalMs: 1000,
    downtimeMs: 5,
    downtime: { pauseMs: 1, syncMs: 1, pagesMs: 1, devicesMs: 1, handoverMs: 1 },
    rounds: [],
    guestBytes: 4096,
    sentBytes: 4096,
    pages: { zero: 0, unchanged: 0, delta: 0, compressed: 0, raw: 1, untouched: 0 },
    channels: [MAIN, ...bulk],
    cpuMs: 1,
  };
  // What is long goes on in lines that begin with spaces.
  const rows = reportText(report)
    .replace(/\n {6,}/g, " ")
    .trimEnd()
    .split("\n");
  return rows.filter((row) => row.startsWith(name)).map((row) => row.replace(/(?<=\S) +/g, " "));
}

test("people are told how much of memory went which way, if there was more than one", () => {
  const raw = { pages: 1000, sentBytes: 4 * MIB };
  const delta = { pages: 2000, sentBytes: MIB };
  const none = { pages: 0, sentBytes: 0 };
  expect(linesOf("by way", { ways: { raw, delta, codec: none } }, 2)).toEqual([
    "by way raw 8.00 MiB of 2000 pages, deltas 2.00 MiB of 4000 pages",
  ]);
  expect(linesOf("by way", { ways: { raw, delta: none, codec: none } })).toEqual([]);
});

test("people are told what auto chose in each channel, and what decided it", () => {
  const codec = {
    ...BULK.codec,
    choice: "zstd 3: raw not tried, compressed 4.00, changed 2 times",
  };
  const delta = { ...BULK.delta, choice: "deltas: comparing 0.50, changed 0 times; 7 pages" };
  expect(linesOf("  chose", { codec, delta })).toEqual([
    "  chose zstd 3: raw not tried, compressed 4.00; deltas: comparing 0.50",
  ]);
  expect(linesOf("  chose", { codec: { ...codec, forcedFrames: 12 } })).toEqual([
    "  chose zstd 3: raw not tried, compressed 4.00; 12 frames held back by --cpu-limit",
  ]);
  expect(linesOf("  chose", {})).toEqual([]);
});

test("people are told of a cache that lost more versions than were found, and what to do", () => {
  const cache = (hits: number, evictions: number, refusals: number) => {
    return linesOf("deltas", { delta: { ...BULK.delta, hits, evictions, refusals } }, 2);
  };
  const [line] = cache(700, 300, 500);
  expect(line).toContain("too small to be of much use: 1400 versions of pages were found, 1600");
  expect(line).toContain("--xbzrle-cache-size");
  expect(cache(900, 300, 500)).toEqual([]);
  // A few are no matter.
  expect(cache(0, 100, 100)).toEqual([]);
});
