import { assert } from "../base/assert.ts";
import { MigrationError } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";

/**
 * Every byte between two hosts is in a frame. A frame is a header and a body; the header, little
 * endian as everything on the wire:
 *
 *   offset  size  field
 *        0     4  magic      "mfd1"
 *        4     1  kind       see FRAMES; zero is never valid
 *        5     1  flags      bit 0: the checksum is there
 *        6     2  reserved   zero
 *        8     4  sequence   0, 1, 2 … per channel and direction; wraps
 *       12     4  length     bytes of body that follow
 *       16     8  checksum   xxHash64 (seed 0) of bytes 0 to 15 and the body; zero without flag
 */
export const HEADER_BYTES = 24;
export const CHECKSUMMED_HEADER_BYTES = 16;
export const FLAG_CHECKSUM = 1;

const MAGIC = 0x3164_666d;

/** Bytes of page content in one frame: small enough to stay in a core's cache on the way. */
export const PAYLOAD_BYTES_MAX = 1 * MIB;
export const RUNS_MAX = 512;
export const PAGES_HEAD_BYTES = 8;
export const RUN_BYTES = 12;

/** Device state travels in pieces of at most this. */
export const PIECE_BYTES_MAX = 256 * KIB;

export const PARAMETERS_MAX = 64;
export const BLOCKS_MAX = 1024;
export const NAME_BYTES_MAX = 255;
export const CHANNELS_MAX = 64;
export const DESCRIPTION_BYTES_MAX = 32 * KIB;
const FACTS_BYTES_MAX = 16 * KIB;

/** Bits of missing pages in one frame: those of 2 GiB in pages of 4 KiB. */
export const DISCARD_BITS_BYTES_MAX = 64 * KIB;

/** That wait for pages and of which it is told how long. */
export const VCPUS_MAX = 256;

/** What a channel is for, by its number in HELLO. Urgency is a property of a request, and is not told here. */
export const LANE = { main: 1, bulk: 2, priority: 3 } as const;
export type Lane = keyof typeof LANE;

const EVERY_LANE = ["main", "bulk", "priority"] as const satisfies Lane[];

interface FrameRow {
  /** Identifies the frame on the wire; never reused, never renumbered. */
  readonly kind: number;
  /** Of the channels that may carry it. */
  readonly lanes: readonly Lane[];
  readonly from: "source" | "destination" | "both";
  /** Checked before anything is allocated for the body. */
  readonly bodyBytesMax: number;
  readonly layout: string;
  readonly meaning: string;
}

/** Every frame there is. Layouts are `type name` in wire order; `str` is a u16 length and UTF-8. */
export const FRAMES = {
  hello: {
    kind: 1,
    lanes: EVERY_LANE,
    from: "source",
    bodyBytesMax: 56,
    layout:
      "u16 versionMin, u16 versionMax, u8[16] migrationId, u16 channel, u8 lane, u8 reserved, u8[32] token",
    meaning:
      "First frame of every connection. Lane is 1 main, 2 bulk, 3 priority; the main channel is number 0 and its token is zero, but to come back; the others carry the token of WELCOME.",
  },
  welcome: {
    kind: 2,
    lanes: EVERY_LANE,
    from: "destination",
    bodyBytesMax: 36,
    layout: "u16 version, u16 reserved, u8[32] token",
    meaning:
      "Admits a connection. On the main channel it names the version and issues the secret token; on the others the token is zero. A source sends nothing between HELLO and WELCOME.",
  },
  agree: {
    kind: 3,
    lanes: ["main"],
    from: "source",
    bodyBytesMax:
      16 +
      PARAMETERS_MAX * 2 * (2 + NAME_BYTES_MAX) +
      BLOCKS_MAX * (2 + NAME_BYTES_MAX + 12) +
      (2 + DESCRIPTION_BYTES_MAX),
    layout:
      "u64 fingerprint, u16 channels, u16 parameters, {str name, str value}[parameters], u32 blocks, {str name, u64 sizeBytes, u32 pageBytes}[blocks], str description",
    meaning:
      "What both ends must agree on. The fingerprint is xxHash64 of every `name=value` and a line feed, in order. The description is from host to host, of their own making.",
  },
  accept: {
    kind: 4,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 0,
    layout: "",
    meaning: "Parameters and blocks suit; memory is there. Other channels may now connect.",
  },
  failure: {
    kind: 5,
    lanes: EVERY_LANE,
    from: "both",
    bodyBytesMax: FACTS_BYTES_MAX,
    layout: "str code, str facts",
    meaning:
      "The sender gave up; `facts` is JSON. Valid at any time as the last frame. CANCELLED is how a source cancels.",
  },
  pages: {
    kind: 6,
    lanes: ["bulk", "priority"],
    from: "source",
    bodyBytesMax: PAGES_HEAD_BYTES + RUNS_MAX * RUN_BYTES + PAYLOAD_BYTES_MAX,
    layout:
      "u32 block, u16 runs, u8 codec, u8 reserved, {u32 firstPage, u16 pages, u8 encoding, u8 reserved, u32 bytes}[runs], payload",
    meaning:
      "Runs of pages of one block, their payloads in order and, with a codec, compressed as one. Block counts from 0 in the order of AGREE; page is the block's wire page.",
  },
  fence: {
    kind: 7,
    lanes: ["bulk"],
    from: "source",
    bodyBytesMax: 4,
    layout: "u32 number",
    meaning: "Everything sent before on this channel must be applied before FENCED answers.",
  },
  fenced: {
    kind: 8,
    lanes: ["bulk"],
    from: "destination",
    bodyBytesMax: 4,
    layout: "u32 number",
    meaning: "Everything before the FENCE of that number is in memory.",
  },
  end: {
    kind: 9,
    lanes: ["bulk", "priority"],
    from: "source",
    bodyBytesMax: 0,
    layout: "",
    meaning: "No frame follows on this channel.",
  },
  round: {
    kind: 10,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 40,
    layout: "u32 round, u32 reserved, u64 dirtyPages, u64 sentPages, u64 sentBytes, f64 elapsedMs",
    meaning: "A round ended; for the destination's progress and report.",
  },
  devices: {
    kind: 11,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 16,
    layout: "u32 sections, u32 reserved, u64 bytes",
    meaning: "Device state follows: that many sections of that many bytes together.",
  },
  section: {
    kind: 12,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 8 + 2 + NAME_BYTES_MAX,
    layout: "u64 bytes, str name",
    meaning: "A named section of device state; its bytes follow in PIECE frames.",
  },
  piece: {
    kind: 13,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: PIECE_BYTES_MAX,
    layout: "u8[] bytes",
    meaning: "Bytes of the section, never empty, never more than the section still lacks.",
  },
  ready: {
    kind: 14,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 0,
    layout: "",
    meaning: "RAM and devices are loaded; the guest can run here. It does not yet.",
  },
  commit: {
    kind: 15,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 0,
    layout: "",
    meaning: "The guest is the destination's. The source will never resume it on its own.",
  },
  running: {
    kind: 16,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 24,
    layout: "u64 untouchedPages, u32 isKnown, u32 reserved, f64 runningForMs",
    meaning:
      "The guest runs at the destination. Zero pages whose memory was not touched are told, and, if its hypervisor knows, for how long it has run.",
  },
  done: {
    kind: 17,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 80,
    layout:
      "f64 totalMs, f64 pauseMs, f64 syncMs, f64 pagesMs, f64 devicesMs, f64 handoverMs, u32 isKnown, u32 reserved, f64 stopMs, f64 saveMs, f64 resumeMs",
    meaning:
      "The source's clock on the whole and on the parts of the downtime, and what the hypervisors saw of it. Last frame.",
  },
  ping: {
    kind: 18,
    lanes: ["main"],
    from: "both",
    bodyBytesMax: 0,
    layout: "",
    meaning:
      "Still here. Sent whenever nothing else was for a quarter of channel-timeout or 250 ms.",
  },
  lost: {
    kind: 19,
    lanes: ["main"],
    from: "both",
    bodyBytesMax: 4,
    layout: "u16 channel, u16 reserved",
    meaning:
      "A bulk channel's connection is given up. From the destination a notice; from the source a demand, answered by GONE: what was sent on it since its last FENCED will be sent on others.",
  },
  gone: {
    kind: 20,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 4,
    layout: "u16 channel, u16 reserved",
    meaning:
      "Nothing that came on that bulk channel will be applied any more. Another connection may join with its number.",
  },
  lanes: {
    kind: 24,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 4,
    layout: "u16 priorityChannels, u16 reserved",
    meaning:
      "Sent right before AGREE by a source that may go over to post-copy: that many channels of lane priority join, numbered after the bulk channels.",
  },
  discard: {
    kind: 25,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 8 + DISCARD_BITS_BYTES_MAX,
    layout: "u32 block, u32 firstPage, u32[] bits",
    meaning:
      "Bit b of word w: page firstPage + 32 w + b of the block is missing at the destination, whatever lies there. Sent while the guest is paused.",
  },
  switch: {
    kind: 26,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 8,
    layout: "u64 pages",
    meaning:
      "Every missing page was named, so many together; they follow after RUNNING. DEVICES comes next.",
  },
  request: {
    kind: 27,
    lanes: ["priority"],
    from: "destination",
    bodyBytesMax: 12,
    layout: "u32 block, u32 page, u32 number",
    meaning:
      "The guest waits for this page; numbers count the requests of a channel from 0. Answered by PAGES on this channel, or not at all when the page is on its way already.",
  },
  complete: {
    kind: 28,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 0,
    layout: "",
    meaning: "Every page is there: nothing is needed of the source any more.",
  },
  faults: {
    kind: 29,
    lanes: ["main"],
    from: "both",
    bodyBytesMax: 248 + 8 * VCPUS_MAX,
    layout:
      "5 * { f64 count, f64 p50Us, f64 p90Us, f64 p99Us, f64 p999Us, f64 maxUs }, u32 vcpus, u32 reserved, f64[] blockedMs",
    meaning:
      "How long pages were waited for: in all, queued, on the wire, served and installed, and how long each vCPU waited. From the destination before COMPLETE, with nothing served; from the source, complete, before DONE.",
  },
  rejoin: {
    kind: 32,
    lanes: ["main"],
    from: "both",
    bodyBytesMax: 4,
    layout: "u32 received",
    meaning:
      "On a connection that takes the place of a lost main channel: frames received on the main channel so far, without HELLO, WELCOME, PING and REJOIN. Those after them are sent again.",
  },
  recover: {
    kind: 33,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 0,
    layout: "",
    meaning:
      "On a new main channel, in post-copy: everything before is over with its connections. The destination answers with MISSING and RECOVERED.",
  },
  missing: {
    kind: 34,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 8 + DISCARD_BITS_BYTES_MAX,
    layout: "u32 block, u32 firstPage, u32[] bits",
    meaning:
      "Bit b of word w: page firstPage + 32 w + b of the block is not there, and must be sent, whether or not it was before.",
  },
  recovered: {
    kind: 35,
    lanes: ["main"],
    from: "destination",
    bodyBytesMax: 8,
    layout: "u64 pages",
    meaning:
      "Every missing page was named, so many together. Bulk and priority channels may join, with the token of this connection's WELCOME.",
  },
  resumed: {
    kind: 36,
    lanes: ["main"],
    from: "source",
    bodyBytesMax: 0,
    layout: "",
    meaning: "All channels have joined again: from here on requests may come, and pages.",
  },
} as const satisfies Record<string, FrameRow>;

/** Whether such frames come on the main channel. */
export function isOfMain(name: FrameName): boolean {
  const { lanes }: FrameRow = FRAMES[name];
  return lanes.includes("main");
}

export type FrameName = keyof typeof FRAMES;

const NAME_OF_KIND = new Map<number, FrameName>(
  Object.entries(FRAMES).map(([name, row]) => [row.kind, name as FrameName]),
);
assert(NAME_OF_KIND.size === Object.keys(FRAMES).length, "frame kinds are unique");
assert(!NAME_OF_KIND.has(0), "zero is never a valid kind");

export interface Header {
  readonly name: FrameName;
  readonly sequence: number;
  readonly length: number;
  readonly hasChecksum: boolean;
  readonly checksum: bigint;
}

/** Writes the header but its checksum, which covers these bytes: see `writeChecksum`. */
export function encodeHeader(
  target: DataView,
  at: number,
  header: { name: FrameName; sequence: number; length: number; hasChecksum: boolean },
): void {
  const row = FRAMES[header.name];
  assert(header.length <= row.bodyBytesMax, "a body fits its frame");
  target.setUint32(at, MAGIC, true);
  target.setUint8(at + 4, row.kind);
  target.setUint8(at + 5, header.hasChecksum ? FLAG_CHECKSUM : 0);
  target.setUint16(at + 6, 0, true);
  target.setUint32(at + 8, header.sequence, true);
  target.setUint32(at + 12, header.length, true);
  target.setBigUint64(at + 16, 0n, true);
}

export function writeChecksum(target: DataView, at: number, checksum: bigint): void {
  target.setBigUint64(at + 16, checksum, true);
}

/**
 * Reads and checks a header: the peer is not trusted, every field is checked before any is used.
 * Throws FRAME_CORRUPT for anything that no peer of ours would send next on this channel.
 */
export function decodeHeader(
  source: DataView,
  at: number,
  wanted: { channel: number; sequence: number },
): Header {
  const { channel } = wanted;
  const magic = source.getUint32(at, true);
  if (magic !== MAGIC) throw corrupt(channel, "magic", magic);
  const kind = source.getUint8(at + 4);
  const name = NAME_OF_KIND.get(kind);
  if (name === undefined) throw corrupt(channel, "kind", kind);
  const flags = source.getUint8(at + 5);
  if ((flags & ~FLAG_CHECKSUM) !== 0) throw corrupt(channel, "flags", flags);
  const reserved = source.getUint16(at + 6, true);
  if (reserved !== 0) throw corrupt(channel, "reserved", reserved);
  const sequence = source.getUint32(at + 8, true);
  if (sequence !== wanted.sequence) throw corrupt(channel, "sequence", sequence);
  const length = source.getUint32(at + 12, true);
  if (length > FRAMES[name].bodyBytesMax) throw corrupt(channel, `length of "${name}"`, length);
  const checksum = source.getBigUint64(at + 16, true);
  const hasChecksum = (flags & FLAG_CHECKSUM) !== 0;
  if (!hasChecksum && checksum !== 0n) throw corrupt(channel, "checksum without flag", 1);
  return { name, sequence, length, hasChecksum, checksum };
}

/** The sequence number after `sequence`. */
export function nextSequence(sequence: number): number {
  return (sequence + 1) >>> 0;
}

export function corrupt(channel: number, field: string, found: number | string): MigrationError {
  return new MigrationError("FRAME_CORRUPT", { channel, field, found });
}
