import { expect, test } from "vitest";
import { type Progress, type Report, STATISTICS } from "../engine/statistics.ts";

const LATENCY = { count: 1, p50Us: 1, p90Us: 1, p99Us: 1, p999Us: 1, maxUs: 1 };

const WAY = { pages: 1, sentBytes: 1 };

const REPORT: Required<Report> = {
  totalMs: 1,
  downtimeMs: 1,
  downtime: { pauseMs: 1, syncMs: 1, pagesMs: 1, devicesMs: 1, handoverMs: 1 },
  hypervisor: { downtimeMs: 1, stopMs: 1, pagesMs: 1, saveMs: 1, loadMs: 1, resumeMs: 1 },
  rounds: [{ dirtyPages: 1, sentPages: 1, sentBytes: 1, elapsedMs: 1 }],
  guestBytes: 1,
  sentBytes: 1,
  pages: { zero: 1, unchanged: 1, delta: 1, compressed: 1, raw: 1, untouched: 1 },
  channels: [
    {
      id: 1,
      lane: "bulk",
      losses: 1,
      sentBytes: 1,
      waitMs: 1,
      busyMs: 1,
      ways: { raw: WAY, delta: WAY, codec: WAY },
      delta: {
        ...{ hits: 1, misses: 1, overflows: 1, evictions: 1, refusals: 1 },
        ...{ beforeBytes: 1, afterBytes: 1, choice: "" },
      },
      codec: {
        ...{ triedBytes: 1, beforeBytes: 1, afterBytes: 1, workMs: 1 },
        ...{ forcedFrames: 1, choice: "" },
      },
      scan: { readBytes: 1, workMs: 1 },
    },
  ],
  cpuMs: 1,
  faults: {
    ...LATENCY,
    blockedMs: 1,
    repeatedPages: 1,
    vcpus: [{ blockedMs: 1 }],
    stages: { queued: LATENCY, wire: LATENCY, served: LATENCY, installed: LATENCY },
  },
  verified: true,
};

const PROGRESS: Required<Progress> = {
  phase: "pre-copy",
  round: 1,
  dirtyPages: 1,
  dirtyBytes: 1,
  sentBytes: 1,
  totalBytes: 1,
  bytesPerSecond: 1,
  dirtyBytesPerSecond: 1,
  expectedDowntimeMs: null,
  throttlePercent: 1,
  deviceBytes: 1,
  workingChannels: 1,
  elapsedMs: 1,
  faults: {
    ...LATENCY,
    blockedMs: 1,
    vcpus: [{ blockedMs: 1 }],
    stages: { queued: LATENCY, wire: LATENCY, served: LATENCY, installed: LATENCY },
  },
};

function pathsOf(value: unknown, path = ""): string[] {
  if (Array.isArray(value)) return value.flatMap((element) => pathsOf(element, `${path}[]`));
  if (typeof value !== "object" || value === null) return [path];
  return Object.entries(value).flatMap(([name, inner]) =>
    pathsOf(inner, path === "" ? name : `${path}.${name}`),
  );
}

test("the table of statistics has exactly the fields of a report and of a progress event", () => {
  expect(Object.keys(STATISTICS.report)).toEqual(pathsOf(REPORT));
  expect(Object.keys(STATISTICS.progress)).toEqual(pathsOf(PROGRESS));
});

test("a statistic's name ends in its unit", () => {
  const endings = [
    ["milliseconds", /Ms$/],
    ["microseconds", /Us$/],
    ["bytes", /Bytes$/],
    ["bytes per second", /ytesPerSecond$/],
    ["percent", /Percent$/],
  ] as const;
  for (const [path, { unit, meaning }] of Object.entries({
    ...STATISTICS.report,
    ...STATISTICS.progress,
  })) {
    for (const [name, ending] of endings) expect(ending.test(path), path).toBe(unit === name);
    expect(meaning).toMatch(/^[A-Z0-9].+\.$/);
  }
});
