import type { Lane } from "../channels/frame.ts";
import type { FaultStage, LatencyFigures } from "../channels/messages.ts";

/** Where the downtime went. The parts follow each other and add up to `Report.downtimeMs`. */
export interface DowntimeFigures {
  readonly pauseMs: number;
  readonly syncMs: number;
  readonly pagesMs: number;
  readonly devicesMs: number;
  readonly handoverMs: number;
}

/**
 * The downtime as the hypervisors saw it: from the guest's last instruction at the source to its
 * first at the destination. The parts add up to `downtimeMs`.
 */
export interface HypervisorFigures {
  readonly downtimeMs: number;
  readonly stopMs: number;
  readonly pagesMs: number;
  readonly saveMs: number;
  readonly loadMs: number;
  readonly resumeMs: number;
}

export interface RoundFigures {
  readonly dirtyPages: number;
  readonly sentPages: number;
  readonly sentBytes: number;
  readonly elapsedMs: number;
}

export interface PageFigures {
  readonly zero: number;
  readonly unchanged: number;
  readonly delta: number;
  readonly compressed: number;
  readonly raw: number;
  readonly untouched: number;
}

export interface ChannelFigures {
  readonly id: number;
  readonly lane: Lane;
  readonly losses: number;
  readonly sentBytes: number;
  readonly waitMs: number;
  readonly busyMs: number;
  readonly ways: { readonly [way in "raw" | "delta" | "codec"]: WayFigures };
  readonly delta: DeltaFigures;
  readonly codec: CodecFigures;
  readonly scan: ScanFigures;
}

/** What of a channel's pages went one way; at the source only. */
export interface WayFigures {
  readonly pages: number;
  readonly sentBytes: number;
}

/** How a channel's cache of sent versions served; at the source only. */
export interface DeltaFigures {
  readonly hits: number;
  readonly misses: number;
  readonly overflows: number;
  readonly evictions: number;
  readonly refusals: number;
  readonly beforeBytes: number;
  readonly afterBytes: number;
  /** Whether auto made deltas in the end, and why. */
  readonly choice: string;
}

/** What compression did in a channel; at the source only. */
export interface CodecFigures {
  readonly triedBytes: number;
  readonly beforeBytes: number;
  readonly afterBytes: number;
  readonly workMs: number;
  readonly forcedFrames: number;
  /** What auto chose in the end, and why. */
  readonly choice: string;
}

/** How memory without a log was searched for changes in a channel; at the source only. */
export interface ScanFigures {
  readonly readBytes: number;
  readonly workMs: number;
}

/** Waits for pages that were missing: in all, by vCPU, and of those that lanes brought, by stage. */
export interface FaultFigures extends LatencyFigures {
  readonly blockedMs: number;
  /** At the source only. */
  readonly repeatedPages?: number;
  /** By seat at the door. */
  readonly vcpus: readonly { readonly blockedMs: number }[];
  readonly stages: Readonly<Record<Exclude<FaultStage, "total">, LatencyFigures>>;
}

/** The same so far, as this end knows it: the source knows what it served, the destination the rest. */
export interface FaultProgress extends Partial<LatencyFigures> {
  readonly blockedMs?: number;
  readonly vcpus?: FaultFigures["vcpus"];
  readonly stages: Partial<FaultFigures["stages"]>;
}

/** What a migration came to, the same at both ends. Every field has its row in `STATISTICS`. */
export interface Report {
  readonly totalMs: number;
  readonly downtimeMs: number;
  readonly downtime: DowntimeFigures;
  /** Only where the hosts' hypervisors tell when they stopped and ran the guest. */
  readonly hypervisor?: HypervisorFigures;
  readonly rounds: readonly RoundFigures[];
  readonly guestBytes: number;
  readonly sentBytes: number;
  readonly pages: PageFigures;
  readonly channels: readonly ChannelFigures[];
  readonly cpuMs: number;
  /** After post-copy only. */
  readonly faults?: FaultFigures;
  /** Only where a command compared the memory of both ends. */
  readonly verified?: boolean;
}

/** How far a migration is. Every field has its row in `STATISTICS`. */
export interface Progress {
  readonly phase: string;
  readonly round: number;
  readonly dirtyPages: number;
  readonly dirtyBytes: number;
  readonly sentBytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
  readonly dirtyBytesPerSecond: number;
  readonly expectedDowntimeMs: number | null;
  readonly throttlePercent: number;
  readonly deviceBytes: number;
  readonly workingChannels: number;
  readonly elapsedMs: number;
  /** In post-copy. */
  readonly faults?: FaultProgress;
}

export type StatisticUnit =
  | "milliseconds"
  | "microseconds"
  | "bytes"
  | "bytes per second"
  | "pages"
  | "percent"
  | "count"
  | "number"
  | "name"
  | "boolean";

export interface StatisticRow {
  readonly unit: StatisticUnit;
  /** True where the field may be left out, or null where it is not known yet. */
  readonly optional?: true;
  readonly meaning: string;
}

/** The dotted paths of a type's leaves: `downtime.pauseMs`, `rounds[].sentPages`. */
type PathsOf<T, Path extends string = ""> = T extends readonly (infer Element)[]
  ? PathsOf<Element, `${Path}[]`>
  : T extends object
    ? {
        [K in keyof T & string]-?: PathsOf<NonNullable<T[K]>, Path extends "" ? K : `${Path}.${K}`>;
      }[keyof T & string]
    : Path;

type LatencyRows<Path extends string> = Record<`${Path}.${keyof LatencyFigures}`, StatisticRow>;

/** The rows of times that were counted in buckets: within 9 %, and never told too short. */
function latencyRows<Path extends string>(path: Path, what: string): LatencyRows<Path> {
  const row = (unit: StatisticUnit, meaning: string): StatisticRow => {
    return { unit, optional: true, meaning: `${what}: ${meaning}` };
  };
  const rows: Record<keyof LatencyFigures, StatisticRow> = {
    count: row("count", "how many after post-copy began."),
    p50Us: row("microseconds", "half took this time or less."),
    p90Us: row("microseconds", "9 of 10 took this time or less."),
    p99Us: row("microseconds", "99 of 100 took this time or less."),
    p999Us: row("microseconds", "999 of 1000 took this time or less."),
    maxUs: row("microseconds", "the slowest, as all of these rounded up by at most 9 %."),
  };
  const named = Object.entries(rows).map(([name, each]) => [`${path}.${name}`, each]);
  return Object.fromEntries(named) as LatencyRows<Path>;
}

/** Of a fault, in a report and on the way there. */
const stageRows = {
  ...latencyRows("faults.stages.queued", "Of that, until the request for the page was written"),
  ...latencyRows(
    "faults.stages.wire",
    "From there on until the answer began to come, the source's work included",
  ),
  ...latencyRows("faults.stages.served", "At the source, from a request to its answer"),
  ...latencyRows(
    "faults.stages.installed",
    "From the answer's first byte until the page was placed and its vCPU woken",
  ),
};

/** Every figure, by its path. It compiles only while the paths are exactly those of the types. */
export const STATISTICS = {
  report: {
    totalMs: {
      unit: "milliseconds",
      meaning: "From the first connection until the guest runs at the destination.",
    },
    downtimeMs: {
      unit: "milliseconds",
      meaning: "From asking the guest to pause at the source until it runs at the destination.",
    },
    "downtime.pauseMs": {
      unit: "milliseconds",
      meaning: "Part of the downtime: until the host has paused its guest.",
    },
    "downtime.syncMs": {
      unit: "milliseconds",
      meaning: "Part of the downtime: reading the dirty logs for the last time.",
    },
    "downtime.pagesMs": {
      unit: "milliseconds",
      meaning: "Part of the downtime: sending the rest, until it is applied at the destination.",
    },
    "downtime.devicesMs": {
      unit: "milliseconds",
      meaning:
        "Part of the downtime: saving devices, moving and loading their state, until READY is here.",
    },
    "downtime.handoverMs": {
      unit: "milliseconds",
      meaning: "Part of the downtime: from COMMIT until RUNNING is here.",
    },
    "hypervisor.downtimeMs": {
      unit: "milliseconds",
      optional: true,
      meaning:
        "From the moment at which the source's hypervisor says that it stopped the guest until that at which the destination's says that it runs. Clocks of two hosts are never compared: it is too long by the time in which RUNNING travelled.",
    },
    "hypervisor.stopMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Part of it: from stopping the guest until the host had paused it.",
    },
    "hypervisor.pagesMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Part of it: reading the dirty logs, and sending the rest of the pages.",
    },
    "hypervisor.saveMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Part of it: saving devices at the source.",
    },
    "hypervisor.loadMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Part of it: moving the devices' state and loading it, until READY is here.",
    },
    "hypervisor.resumeMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Part of it: from COMMIT until the destination's hypervisor ran the guest.",
    },
    "rounds[].dirtyPages": {
      unit: "pages",
      meaning:
        "Pages that were dirty when the round began, of memory that is scanned those that it found changed; in the first round, all of them.",
    },
    "rounds[].sentPages": {
      unit: "pages",
      meaning: "Pages that the round sent, in whatever encoding.",
    },
    "rounds[].sentBytes": {
      unit: "bytes",
      meaning: "Bytes that the round wrote to all channels.",
    },
    "rounds[].elapsedMs": { unit: "milliseconds", meaning: "How long the round took." },
    guestBytes: { unit: "bytes", meaning: "Size of the guest's RAM, all blocks together." },
    sentBytes: {
      unit: "bytes",
      meaning: "Bytes written to all channels, headers included, counted where they are written.",
    },
    "pages.zero": { unit: "pages", meaning: "Pages that were sent as all zero." },
    "pages.unchanged": {
      unit: "pages",
      meaning: "Pages that were dirty but held what the destination already has.",
    },
    "pages.delta": {
      unit: "pages",
      meaning: "Pages that were sent as a difference from the version that the destination has.",
    },
    "pages.compressed": { unit: "pages", meaning: "Pages that were sent in compressed runs." },
    "pages.raw": { unit: "pages", meaning: "Pages that were sent byte for byte." },
    "pages.untouched": {
      unit: "pages",
      meaning:
        "Zero pages that the destination had no need to write: its memory was never used there. Counted among the zero pages, too.",
    },
    "channels[].id": { unit: "number", meaning: "Number of the channel; the main channel is 0." },
    "channels[].lane": {
      unit: "name",
      meaning: "What the channel is for: main, bulk or priority.",
    },
    "channels[].losses": {
      unit: "count",
      meaning:
        "How often its connection was lost, or given up because nothing moved; others sent its pages then, until it had another connection.",
    },
    "channels[].sentBytes": {
      unit: "bytes",
      meaning: "Bytes that the source wrote to the channel.",
    },
    "channels[].waitMs": {
      unit: "milliseconds",
      meaning:
        "Time that the channel's thread waited for the connection, at the destination also for data.",
    },
    "channels[].busyMs": {
      unit: "milliseconds",
      meaning: "Time that the channel's thread worked, waiting not included.",
    },
    "channels[].ways.raw.pages": {
      unit: "pages",
      meaning: "Pages of the channel that were sent byte for byte; at the source only.",
    },
    "channels[].ways.raw.sentBytes": {
      unit: "bytes",
      meaning: "What was sent of them, headers not included.",
    },
    "channels[].ways.delta.pages": {
      unit: "pages",
      meaning: "Pages that were sent as differences, and these as they were.",
    },
    "channels[].ways.delta.sentBytes": {
      unit: "bytes",
      meaning: "What was sent of them, lengths and generations included.",
    },
    "channels[].ways.codec.pages": {
      unit: "pages",
      meaning: "Pages that were sent in compressed payloads, differences among them included.",
    },
    "channels[].ways.codec.sentBytes": { unit: "bytes", meaning: "What was sent of them." },
    "channels[].delta.hits": {
      unit: "pages",
      meaning: "Dirty pages whose version at the destination was in the cache.",
    },
    "channels[].delta.misses": { unit: "pages", meaning: "Dirty pages whose version was not." },
    "channels[].delta.overflows": {
      unit: "pages",
      meaning: "Pages whose difference would have been no smaller than the page.",
    },
    "channels[].delta.evictions": {
      unit: "pages",
      meaning: "Versions in the cache that gave way to another page's.",
    },
    "channels[].delta.refusals": {
      unit: "pages",
      meaning:
        "Pages that were written again, and whose version found no room in the cache: it was full of others that were of use lately.",
    },
    "channels[].delta.beforeBytes": {
      unit: "bytes",
      meaning: "Guest memory that was sent as differences.",
    },
    "channels[].delta.afterBytes": { unit: "bytes", meaning: "What these differences came to." },
    "channels[].delta.choice": {
      unit: "name",
      meaning:
        "With compression auto: whether deltas were made in the end or given up, with what comparing pages and sending them without deltas were measured to take, and how many pages were not compared.",
    },
    "channels[].codec.triedBytes": { unit: "bytes", meaning: "Payload given to a codec." },
    "channels[].codec.beforeBytes": {
      unit: "bytes",
      meaning: "Of that, payload that shrank and was sent compressed.",
    },
    "channels[].codec.afterBytes": { unit: "bytes", meaning: "What it was compressed to." },
    "channels[].codec.workMs": { unit: "milliseconds", meaning: "Time spent in compressing." },
    "channels[].codec.forcedFrames": {
      unit: "count",
      meaning:
        "Frames that went uncompressed because compression had used up its processor time; see --cpu-limit.",
    },
    "channels[].codec.choice": {
      unit: "name",
      meaning:
        "With compression auto: the way chosen last, with what raw and compressed memory were measured to take, and what each codec made of samples.",
    },
    "channels[].scan.readBytes": {
      unit: "bytes",
      meaning:
        "Guest memory that was read and hashed, to find what changed, and what the kernel told of its use.",
    },
    "channels[].scan.workMs": { unit: "milliseconds", meaning: "Time spent in that." },
    cpuMs: {
      unit: "milliseconds",
      meaning: "Processor time of this process, user and system, all threads, while it migrated.",
    },
    ...latencyRows("faults", "A fault, from a vCPU's first look to its going on"),
    "faults.blockedMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Time that vCPUs waited for pages, all of them together.",
    },
    "faults.repeatedPages": {
      unit: "pages",
      optional: true,
      meaning:
        "Pages that a lane sent once more, since the guest asked for them while they lay behind others in a bulk channel; at the source only. The destination cannot tell them apart, and has them twice among its pages.",
    },
    "faults.vcpus[].blockedMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "The same for each vCPU, by its seat at the door.",
    },
    ...stageRows,
    verified: {
      unit: "boolean",
      optional: true,
      meaning: "Whether the memory of both ends was compared and found equal.",
    },
  } satisfies Record<PathsOf<Report>, StatisticRow>,
  progress: {
    phase: { unit: "name", meaning: "The phase that the migration is in." },
    round: { unit: "number", meaning: "The current round, counted from 1; 0 before the first." },
    dirtyPages: {
      unit: "pages",
      meaning:
        "Pages that are known to be dirty and not sent yet; of memory that is scanned, those that were never sent. 0 at the destination, which cannot know.",
    },
    dirtyBytes: { unit: "bytes", meaning: "The same in bytes of guest memory." },
    sentBytes: { unit: "bytes", meaning: "Bytes written to all channels so far." },
    totalBytes: { unit: "bytes", meaning: "Size of the guest's RAM, all blocks together." },
    bytesPerSecond: { unit: "bytes per second", meaning: "What all channels together send now." },
    dirtyBytesPerSecond: {
      unit: "bytes per second",
      meaning: "Guest memory that becomes dirty in a second, measured over the last rounds.",
    },
    expectedDowntimeMs: {
      unit: "milliseconds",
      optional: true,
      meaning: "How long the pause would be if switchover began now; null until it can be told.",
    },
    throttlePercent: { unit: "percent", meaning: "The share of its time taken from the guest." },
    deviceBytes: {
      unit: "bytes",
      meaning:
        "Device state that the source's host has saved, or that the destination has, so far.",
    },
    workingChannels: {
      unit: "count",
      meaning: "Bulk channels that work; others were lost and have no other connection so far.",
    },
    elapsedMs: { unit: "milliseconds", meaning: "Time since the migration began." },
    ...latencyRows("faults", "In post-copy, at the destination, faults that were answered so far"),
    "faults.blockedMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "Time that vCPUs waited for pages so far, all of them together.",
    },
    "faults.vcpus[].blockedMs": {
      unit: "milliseconds",
      optional: true,
      meaning: "The same for each vCPU, by its seat at the door.",
    },
    ...stageRows,
  } satisfies Record<PathsOf<Progress>, StatisticRow>,
} as const;
