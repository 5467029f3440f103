import { formatBytes, formatMs } from "../base/units.ts";
import type { LatencyFigures } from "../channels/messages.ts";
import type { ChannelFigures, PageFigures, Report, RoundFigures } from "../engine/statistics.ts";
import { aligned } from "./layout.ts";

/** Of more rounds than these together, those between are told in one line. */
const FIRST_ROUNDS = 6;
const LAST_ROUNDS = 4;

/** A report as people read it. Ends in a line feed. */
export function reportText(report: Report): string {
  const { downtime, rounds } = report;
  const rate = report.totalMs === 0 ? 0 : (report.guestBytes / report.totalMs) * 1000;
  const parts = [
    `pause ${formatMs(downtime.pauseMs)}`,
    `sync ${formatMs(downtime.syncMs)}`,
    `pages ${formatMs(downtime.pagesMs)}`,
    `devices ${formatMs(downtime.devicesMs)}`,
    `hand-over ${formatMs(downtime.handoverMs)}`,
  ];
  const rows: string[][] = [
    ["total", `${formatMs(report.totalMs)}, ${formatBytes(rate)}/s of guest memory`],
    ["downtime", `${formatMs(report.downtimeMs)}: ${parts.join(", ")}`],
    ...hypervisorRows(report),
    ["guest", formatBytes(report.guestBytes)],
    ["sent", `${formatBytes(report.sentBytes)}; ${pagesText(report.pages)}`],
    ...wayRows(report),
    ...roundRows(rounds),
    ...report.channels.flatMap((channel) => [
      [`channel ${channel.id}`, channelText(channel)],
      ...choiceRows(channel),
    ]),
    ["processor", formatMs(report.cpuMs)],
    ...faultRows(report),
    ...noteRows(report),
  ];
  if (report.verified !== undefined) {
    rows.push(["verified", report.verified ? "yes: nothing was lost" : "NO: memory differs"]);
  }
  return aligned(rows);
}

function hypervisorRows({ hypervisor }: Report): string[][] {
  if (hypervisor === undefined) return [];
  const parts = [
    `stop ${formatMs(hypervisor.stopMs)}`,
    `pages ${formatMs(hypervisor.pagesMs)}`,
    `save ${formatMs(hypervisor.saveMs)}`,
    `load ${formatMs(hypervisor.loadMs)}`,
    `resume ${formatMs(hypervisor.resumeMs)}`,
  ];
  return [
    ["hypervisor", `stood still for ${formatMs(hypervisor.downtimeMs)}: ${parts.join(", ")}`],
  ];
}

/** With fewer versions lost than this, a larger cache would change little. */
const VERSIONS_LOST_MIN = 1000;

/** What somebody should know, and can do something about. */
function noteRows({ channels }: Report): string[][] {
  const total = (figure: "hits" | "evictions" | "refusals"): number => {
    return channels.reduce((sum, { delta }) => sum + delta[figure], 0);
  };
  const [hits, lost] = [total("hits"), total("evictions") + total("refusals")];
  if (lost < VERSIONS_LOST_MIN || lost <= hits) return [];
  const what = `the cache was too small to be of much use: ${hits} versions of pages were found`;
  const remedy = "with a larger --xbzrle-cache-size there are more deltas";
  return [["deltas", `${what}, ${lost} found no room or gave way; ${remedy}`]];
}

function faultRows({ faults }: Report): string[][] {
  if (faults === undefined) return [];
  const { stages, vcpus, blockedMs, count, repeatedPages = 0 } = faults;
  const waited = vcpus.map((vcpu) => formatMs(vcpu.blockedMs)).join(", ");
  if (count === 0) return [["faults", "none"]];
  return [
    ["faults", `${count}, ${latencyText(faults)}`],
    ...Object.entries(stages).map(([stage, figures]) => [`  ${stage}`, latencyText(figures)]),
    ...(repeatedPages === 0 ? [] : [["repeated", `${repeatedPages} pages that lay behind others`]]),
    ["blocked", `vCPUs waited ${formatMs(blockedMs)} for pages: ${waited}`],
  ];
}

function latencyText({ p50Us, p90Us, p99Us, p999Us, maxUs }: LatencyFigures): string {
  const parts = { p50: p50Us, p90: p90Us, p99: p99Us, "p99.9": p999Us, max: maxUs };
  return Object.entries(parts)
    .map(([name, us]) => `${name} ${formatMs(us / 1000)}`)
    .join(", ");
}

/** What was sent while the guest was paused is the last of them. */
function roundRows(rounds: readonly RoundFigures[]): string[][] {
  const rows = rounds.map((round, index) => [
    index === rounds.length - 1 ? "rest" : `round ${index + 1}`,
    roundText(round),
  ]);
  const between = rounds.slice(FIRST_ROUNDS, -LAST_ROUNDS);
  if (between.length < 2) return rows;
  const folded = [
    `rounds ${FIRST_ROUNDS + 1} to ${FIRST_ROUNDS + between.length}`,
    roundText({
      dirtyPages: sumOf(between, "dirtyPages"),
      sentPages: sumOf(between, "sentPages"),
      sentBytes: sumOf(between, "sentBytes"),
      elapsedMs: sumOf(between, "elapsedMs"),
    }),
  ];
  return rows.toSpliced(FIRST_ROUNDS, between.length, folded);
}

function roundText({ dirtyPages, sentBytes, elapsedMs }: RoundFigures): string {
  return `${dirtyPages} pages dirty, ${formatBytes(sentBytes)} sent in ${formatMs(elapsedMs)}`;
}

function sumOf(rounds: readonly RoundFigures[], figure: keyof RoundFigures): number {
  return rounds.reduce((sum, round) => sum + round[figure], 0);
}

function pagesText({ untouched, ...sent }: PageFigures): string {
  const kinds = Object.entries(sent)
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${count} ${kind}${kind === "zero" ? untouchedText(untouched) : ""}`);
  return kinds.length === 0 ? "no pages" : `pages: ${kinds.join(", ")}`;
}

const WAY_NAMES = { raw: "raw", delta: "deltas", codec: "compressed" } as const;

/** How much of the memory went which way, in all channels together; for who had more than one. */
function wayRows({ channels }: Report): string[][] {
  const parts = (["raw", "delta", "codec"] as const).flatMap((way) => {
    const figures = channels.map(({ ways }) => ways[way]);
    const pages = figures.reduce((sum, each) => sum + each.pages, 0);
    const bytes = figures.reduce((sum, each) => sum + each.sentBytes, 0);
    return pages === 0 ? [] : [`${WAY_NAMES[way]} ${formatBytes(bytes)} of ${pages} pages`];
  });
  return parts.length < 2 ? [] : [["by way", parts.join(", ")]];
}

/** What auto chose in a channel, and by which figures; how often it has changed is told in JSON. */
function choiceRows({ codec, delta }: ChannelFigures): string[][] {
  const choices = [codec.choice, delta.choice].filter((choice) => choice !== "");
  if (choices.length === 0) return [];
  const forced = codec.forcedFrames;
  const limited = forced === 0 ? [] : [`${forced} frames held back by --cpu-limit`];
  const heads = choices.map((choice) => choice.replace(/, changed .*/, ""));
  return [["  chose", [...heads, ...limited].join("; ")]];
}

/** Untouched pages are counted among the zero pages, too. */
function untouchedText(untouched: number): string {
  return untouched === 0 ? "" : ` (${untouched} left untouched)`;
}

function channelText({ id, lane, sentBytes, busyMs, waitMs, scan }: ChannelFigures): string {
  const moved = `${lane}, ${formatBytes(sentBytes)}`;
  // The main channel has no thread of its own whose time could be told.
  if (id === 0) return moved;
  const times = `${moved}, busy ${formatMs(busyMs)}, waited ${formatMs(waitMs)}`;
  if (scan.readBytes === 0) return times;
  const rate = formatBytes((scan.readBytes / scan.workMs) * 1000);
  return `${times}, scanned ${formatBytes(scan.readBytes)} at ${rate}/s`;
}
