import { expect, test } from "vitest";
import { reportText } from "../cli/report-text.ts";
import type { Report } from "../engine/statistics.ts";

/** The text of a report, as far as it tells of faults. */
function faultLines(faults?: Report["faults"]): string[] {
  const report: Report = {
    totalMs: 1000,
    downtimeMs: 5,
    downtime: { pauseMs: 1, syncMs: 1, pagesMs: 1, devicesMs: 1, handoverMs: 1 },
    rounds: [],
    guestBytes: 4096,
    sentBytes: 4096,
    pages: { zero: 0, unchanged: 0, delta: 0, compressed: 0, raw: 1, untouched: 0 },
    channels: [],
    cpuMs: 1,
    ...(faults === undefined ? {} : { faults }),
  };
  const lines = reportText(report).trimEnd().split("\n");
  return lines.slice(lines.findIndex((line) => line.startsWith("processor")) + 1);
}

/** Times that are told apart from each other, and from those of other stages. */
function latency(count: number, us: number) {
  return { count, p50Us: us, p90Us: 2 * us, p99Us: 3 * us, p999Us: 4 * us, maxUs: 5 * us };
}

test("people are told how long pages were waited for, by stage and by vCPU", () => {
  const lines = faultLines({
    ...latency(12, 1000),
    blockedMs: 30,
    vcpus: [{ blockedMs: 10 }, { blockedMs: 20 }],
    stages: {
      queued: latency(11, 10),
      wire: latency(10, 100),
      served: latency(9, 20),
      installed: latency(8, 30),
    },
  });
  expect(lines).toEqual([
    "faults       12, p50 1.00 ms, p90 2.00 ms, p99 3.00 ms, p99.9 4.00 ms, max 5.00 ms",
    "  queued     p50 10.0 us, p90 20.0 us, p99 30.0 us, p99.9 40.0 us, max 50.0 us",
    "  wire       p50 100 us, p90 200 us, p99 300 us, p99.9 400 us, max 500 us",
    "  served     p50 20.0 us, p90 40.0 us, p99 60.0 us, p99.9 80.0 us, max 100 us",
    "  installed  p50 30.0 us, p90 60.0 us, p99 90.0 us, p99.9 120 us, max 150 us",
    "blocked      vCPUs waited 30.0 ms for pages: 10.0 ms, 20.0 ms",
  ]);
});

test("a guest that waited for nothing is told as that; without post-copy nothing is told of it", () => {
  const none = latency(0, 0);
  const stages = { queued: none, wire: none, served: none, installed: none };
  expect(faultLines({ ...none, blockedMs: 0, vcpus: [], stages })).toEqual(["faults     none"]);
  expect(faultLines()).toEqual([]);
});
