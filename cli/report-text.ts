import { formatBytes, formatMs } from "../base/units.ts";
import type { Report } from "../engine/statistics.ts";
import { aligned } from "./layout.ts";

/** A report as people read it. Ends in a line feed. */
export function reportText(report: Report): string {
  const { downtime, pages, rounds } = report;
  const rate = report.totalMs === 0 ? 0 : (report.guestBytes / report.totalMs) * 1000;
  const parts = [
    `pause ${formatMs(downtime.pauseMs)}`,
    `sync ${formatMs(downtime.syncMs)}`,
    `pages ${formatMs(downtime.pagesMs)}`,
    `devices ${formatMs(downtime.devicesMs)}`,
    `hand-over ${formatMs(downtime.handoverMs)}`,
  ];
  const kinds = Object.entries(pages)
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${count} ${kind}`);
  const last = rounds.length - 1;
  const rows: string[][] = [
    ["total", `${formatMs(report.totalMs)}, ${formatBytes(rate)}/s of guest memory`],
    ["downtime", `${formatMs(report.downtimeMs)}: ${parts.join(", ")}`],
    ["guest", formatBytes(report.guestBytes)],
    [
      "sent",
      `${formatBytes(report.sentBytes)}, ${pages.zero === 0 && pages.raw === 0 ? "no pages" : `pages: ${kinds.join(", ")}`}`,
    ],
    ...rounds.map((round, index) => [
      index === last ? "rest" : `round ${index + 1}`,
      `${round.dirtyPages} pages dirty, ${formatBytes(round.sentBytes)} sent in ${formatMs(round.elapsedMs)}`,
    ]),
    ...report.channels.map((channel) => [
      `channel ${channel.id}`,
      `${channel.lane}, ${formatBytes(channel.sentBytes)}, busy ${formatMs(channel.busyMs)}, waited ${formatMs(channel.waitMs)}`,
    ]),
    ["processor", formatMs(report.cpuMs)],
  ];
  if (report.verified !== undefined) {
    rows.push(["verified", report.verified ? "yes: nothing was lost" : "NO: memory differs"]);
  }
  return aligned(rows);
}
