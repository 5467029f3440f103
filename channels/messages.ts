import { FAILURES, isFailureCode, MigrationError, type Origin } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import {
  BLOCKS_MAX,
  CHANNELS_MAX,
  corrupt,
  DESCRIPTION_BYTES_MAX,
  LANE,
  type Lane,
  NAME_BYTES_MAX,
  PARAMETERS_MAX,
  VCPUS_MAX,
} from "./frame.ts";
import { WireReader, WireWriter } from "./wire-bytes.ts";

/** The bodies of the control frames. Layouts: FRAMES in frame.ts, in words in docs/wire.md. */

/** What this code speaks, and the one before where there is one: the promise is both. */
export const VERSION = { min: 1, max: 1 } as const;

export const MIGRATION_ID_BYTES = 16;

/** For people and files. It is no secret: the token is. */
export function formatMigrationId(id: Uint8Array): string {
  return Array.from(id, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
export const TOKEN_BYTES = 32;

const LANE_OF = new Map<number, Lane>(
  Object.entries(LANE).map(([lane, number]) => [number, lane as Lane]),
);

export interface Hello {
  readonly versionMin: number;
  readonly versionMax: number;
  readonly migrationId: Uint8Array;
  readonly channel: number;
  readonly lane: Lane;
  readonly token: Uint8Array;
}

export function encodeHello(hello: Hello): Uint8Array {
  return new WireWriter()
    .u16(hello.versionMin)
    .u16(hello.versionMax)
    .bytes(hello.migrationId)
    .u16(hello.channel)
    .u8(LANE[hello.lane])
    .u8(0)
    .bytes(hello.token)
    .finish();
}

export function decodeHello(body: Uint8Array, channel: number): Hello {
  const reader = new WireReader(body, channel);
  const versionMin = reader.u16("versionMin");
  const versionMax = reader.u16("versionMax");
  const migrationId = reader.bytes(MIGRATION_ID_BYTES, "migrationId").slice();
  const number = reader.u16("channel");
  const laneNumber = reader.u8("lane");
  const lane = LANE_OF.get(laneNumber);
  reader.zero(1);
  const token = reader.bytes(TOKEN_BYTES, "token").slice();
  reader.end();
  if (versionMin > versionMax) throw reader.corrupt("versionMin", versionMin);
  if (lane === undefined) throw reader.corrupt("lane", laneNumber);
  if (number > CHANNELS_MAX) throw reader.corrupt("channel", number);
  if ((lane === "main") !== (number === 0)) throw reader.corrupt("channel of its lane", number);
  return { versionMin, versionMax, migrationId, channel: number, lane, token };
}

/** The newest version that both ends speak. Throws VERSION_UNSUPPORTED. */
export function chooseVersion(offered: { versionMin: number; versionMax: number }): number {
  const version = Math.min(VERSION.max, offered.versionMax);
  if (version >= Math.max(VERSION.min, offered.versionMin)) return version;
  throw new MigrationError("VERSION_UNSUPPORTED", {
    offered: `${offered.versionMin} to ${offered.versionMax}`,
    supported: `${VERSION.min} to ${VERSION.max}`,
  });
}

export interface Welcome {
  readonly version: number;
  readonly token: Uint8Array;
}

export function encodeWelcome(welcome: Welcome): Uint8Array {
  return new WireWriter().u16(welcome.version).u16(0).bytes(welcome.token).finish();
}

export function decodeWelcome(body: Uint8Array, channel: number): Welcome {
  const reader = new WireReader(body, channel);
  const version = reader.u16("version");
  reader.zero(2);
  const token = reader.bytes(TOKEN_BYTES, "token").slice();
  reader.end();
  if (version < VERSION.min || version > VERSION.max) throw reader.corrupt("version", version);
  return { version, token };
}

export interface AgreedParameter {
  readonly name: string;
  readonly value: string;
}
export interface AnnouncedBlock {
  readonly name: string;
  readonly sizeBytes: number;
  readonly pageBytes: number;
}
export interface Agreement {
  readonly fingerprint: bigint;
  readonly channels: number;
  readonly parameters: readonly AgreedParameter[];
  readonly blocks: readonly AnnouncedBlock[];
  /** What the source's host says of its guest to the destination's. */
  readonly description: string;
}

export function encodeAgreement(agreement: Agreement): Uint8Array {
  const writer = new WireWriter()
    .bigU64(agreement.fingerprint)
    .u16(agreement.channels)
    .u16(agreement.parameters.length);
  for (const { name, value } of agreement.parameters) writer.str(name).str(value);
  writer.u32(agreement.blocks.length);
  for (const block of agreement.blocks) {
    writer.str(block.name).u64(block.sizeBytes).u32(block.pageBytes);
  }
  return writer.str(agreement.description).finish();
}

/** Pages of a block number in 32 bits on the wire. */
export const BLOCK_PAGES_MAX = 2 ** 32;
const PAGE_BYTES_MIN = 4 * KIB;
const PAGE_BYTES_MAX = 2 ** 30;

export function decodeAgreement(body: Uint8Array, channel: number): Agreement {
  const reader = new WireReader(body, channel);
  const fingerprint = reader.bigU64("fingerprint");
  const channels = reader.u16("channels");
  if (channels < 1 || channels > CHANNELS_MAX) throw reader.corrupt("channels", channels);
  const parameterCount = reader.u16("parameters");
  if (parameterCount > PARAMETERS_MAX) throw reader.corrupt("parameters", parameterCount);
  const parameters = Array.from({ length: parameterCount }, () => ({
    name: reader.str(NAME_BYTES_MAX, "parameter name"),
    value: reader.str(NAME_BYTES_MAX, "parameter value"),
  }));
  if (new Set(parameters.map(({ name }) => name)).size !== parameters.length) {
    throw reader.corrupt("parameter names", "not unique");
  }
  const blockCount = reader.u32("blocks");
  if (blockCount > BLOCKS_MAX) throw reader.corrupt("blocks", blockCount);
  const blocks = Array.from({ length: blockCount }, () => decodeBlock(reader));
  const description = reader.str(DESCRIPTION_BYTES_MAX, "description");
  reader.end();
  if (new Set(blocks.map((block) => block.name)).size !== blocks.length) {
    throw reader.corrupt("block names", "not unique");
  }
  return { fingerprint, channels, parameters, blocks, description };
}

function decodeBlock(reader: WireReader): AnnouncedBlock {
  const name = reader.str(NAME_BYTES_MAX, "block name");
  const sizeBytes = reader.u64("block size");
  const pageBytes = reader.u32("block page size");
  if (name === "") throw reader.corrupt("block name", "empty");
  const isPowerOfTwo = (pageBytes & (pageBytes - 1)) === 0;
  if (pageBytes < PAGE_BYTES_MIN || pageBytes > PAGE_BYTES_MAX || !isPowerOfTwo) {
    throw reader.corrupt("block page size", pageBytes);
  }
  if (sizeBytes === 0 || sizeBytes % pageBytes !== 0) throw reader.corrupt("block size", sizeBytes);
  if (sizeBytes / PAGE_BYTES_MIN > BLOCK_PAGES_MAX) throw reader.corrupt("block size", sizeBytes);
  return { name, sizeBytes, pageBytes };
}

export function encodeRejoin(received: number): Uint8Array {
  return new WireWriter().u32(received).finish();
}

export function decodeRejoin(body: Uint8Array, channel: number): number {
  const reader = new WireReader(body, channel);
  const received = reader.u32("received");
  reader.end();
  return received;
}

export interface RoundMessage {
  readonly round: number;
  readonly dirtyPages: number;
  readonly sentPages: number;
  readonly sentBytes: number;
  readonly elapsedMs: number;
}

export function encodeRound(round: RoundMessage): Uint8Array {
  return new WireWriter()
    .u32(round.round)
    .u32(0)
    .u64(round.dirtyPages)
    .u64(round.sentPages)
    .u64(round.sentBytes)
    .f64(round.elapsedMs)
    .finish();
}

export function decodeRound(body: Uint8Array, channel: number): RoundMessage {
  const reader = new WireReader(body, channel);
  const round = reader.u32("round");
  reader.zero(4);
  const dirtyPages = reader.u64("dirtyPages");
  const sentPages = reader.u64("sentPages");
  const sentBytes = reader.u64("sentBytes");
  const elapsedMs = reader.f64("elapsedMs");
  reader.end();
  return { round, dirtyPages, sentPages, sentBytes, elapsedMs };
}

export interface DevicesMessage {
  readonly sections: number;
  readonly bytes: number;
}

export function encodeDevices(devices: DevicesMessage): Uint8Array {
  return new WireWriter().u32(devices.sections).u32(0).u64(devices.bytes).finish();
}

export function decodeDevices(body: Uint8Array, channel: number): DevicesMessage {
  const reader = new WireReader(body, channel);
  const sections = reader.u32("sections");
  reader.zero(4);
  const bytes = reader.u64("device bytes");
  reader.end();
  return { sections, bytes };
}

export interface SectionMessage {
  readonly name: string;
  readonly bytes: number;
}

export function encodeSection(section: SectionMessage): Uint8Array {
  return new WireWriter().u64(section.bytes).str(section.name).finish();
}

export function decodeSection(body: Uint8Array, channel: number): SectionMessage {
  const reader = new WireReader(body, channel);
  const bytes = reader.u64("section bytes");
  const name = reader.str(NAME_BYTES_MAX, "section name");
  reader.end();
  return { name, bytes };
}

export interface RunningMessage {
  readonly untouchedPages: number;
  /** For how long already, by the word of the destination's hypervisor; null where it has none. */
  readonly runningForMs: number | null;
}

export function encodeRunning({ untouchedPages, runningForMs }: RunningMessage): Uint8Array {
  const writer = new WireWriter().u64(untouchedPages);
  return optionalFigures(writer, runningForMs === null ? null : [runningForMs], 1).finish();
}

export function decodeRunning(body: Uint8Array, channel: number): RunningMessage {
  const reader = new WireReader(body, channel);
  const untouchedPages = reader.u64("untouchedPages");
  const figures = readOptionalFigures(reader, ["runningForMs"]);
  reader.end();
  return { untouchedPages, runningForMs: figures?.runningForMs ?? null };
}

/** Figures that are there or not, in the same room. */
function optionalFigures(
  writer: WireWriter,
  figures: readonly number[] | null,
  count: number,
): WireWriter {
  writer.u32(figures === null ? 0 : 1).u32(0);
  for (let index = 0; index < count; index += 1) writer.f64(figures?.[index] ?? 0);
  return writer;
}

function readOptionalFigures<Name extends string>(
  reader: WireReader,
  names: readonly Name[],
): Record<Name, number> | null {
  const isKnown = reader.u32("known figures");
  if (isKnown > 1) throw reader.corrupt("known figures", isKnown);
  reader.zero(4);
  const figures = names.map((name) => [name, reader.f64(name)] as const);
  if (isKnown === 1) return Object.fromEntries(figures) as Record<Name, number>;
  // Not -0 either, of which nothing would be left.
  const unknown = figures.find(([, figure]) => !Object.is(figure, 0));
  if (unknown !== undefined) throw reader.corrupt(`unknown ${unknown[0]}`, unknown[1]);
  return null;
}

export interface DoneMessage {
  readonly totalMs: number;
  readonly pauseMs: number;
  readonly syncMs: number;
  readonly pagesMs: number;
  readonly devicesMs: number;
  readonly handoverMs: number;
  /** What the hypervisors at both ends saw; null where they tell nothing. */
  readonly hypervisor: HypervisorLaps | null;
}

/** The laps of the downtime as hypervisors see it that are not the engine's own. */
export interface HypervisorLaps {
  readonly stopMs: number;
  readonly saveMs: number;
  readonly resumeMs: number;
}

const HYPERVISOR_FIELDS = [
  "stopMs",
  "saveMs",
  "resumeMs",
] as const satisfies readonly (keyof HypervisorLaps)[];

const DONE_FIELDS = [
  "totalMs",
  "pauseMs",
  "syncMs",
  "pagesMs",
  "devicesMs",
  "handoverMs",
] as const satisfies readonly (keyof DoneMessage)[];

export function encodeDone(done: DoneMessage): Uint8Array {
  const writer = new WireWriter();
  for (const field of DONE_FIELDS) writer.f64(done[field]);
  const { hypervisor } = done;
  const laps = hypervisor && HYPERVISOR_FIELDS.map((field) => hypervisor[field]);
  return optionalFigures(writer, laps, HYPERVISOR_FIELDS.length).finish();
}

export function decodeDone(body: Uint8Array, channel: number): DoneMessage {
  const reader = new WireReader(body, channel);
  const done = Object.fromEntries(DONE_FIELDS.map((field) => [field, reader.f64(field)]));
  const hypervisor = readOptionalFigures(reader, HYPERVISOR_FIELDS);
  reader.end();
  return { ...(done as Record<(typeof DONE_FIELDS)[number], number>), hypervisor };
}

export function encodeFence(number: number): Uint8Array {
  return new WireWriter().u32(number).finish();
}

export function decodeFence(body: Uint8Array, channel: number): number {
  const reader = new WireReader(body, channel);
  const number = reader.u32("fence number");
  reader.end();
  return number;
}

export const FAULT_STAGES = ["total", "queued", "wire", "served", "installed"] as const;
export type FaultStage = (typeof FAULT_STAGES)[number];

const LATENCY_FIELDS = ["count", "p50Us", "p90Us", "p99Us", "p999Us", "maxUs"] as const;
export type LatencyFigures = Readonly<Record<(typeof LATENCY_FIELDS)[number], number>>;

/** How long pages were waited for in post-copy, and by whom. */
export interface FaultsMessage {
  readonly stages: Readonly<Record<FaultStage, LatencyFigures>>;
  readonly vcpus: readonly { readonly blockedMs: number }[];
}

export function encodeFaults({ stages, vcpus }: FaultsMessage): Uint8Array {
  const writer = new WireWriter();
  for (const stage of FAULT_STAGES) {
    for (const field of LATENCY_FIELDS) writer.f64(stages[stage][field]);
  }
  writer.u32(vcpus.length).u32(0);
  for (const { blockedMs } of vcpus) writer.f64(blockedMs);
  return writer.finish();
}

export function decodeFaults(body: Uint8Array, channel: number): FaultsMessage {
  const reader = new WireReader(body, channel);
  const latency = (stage: FaultStage): LatencyFigures => {
    const fields = LATENCY_FIELDS.map((field) => [field, reader.f64(`${field} of ${stage}`)]);
    return Object.fromEntries(fields) as LatencyFigures;
  };
  const stages = Object.fromEntries(FAULT_STAGES.map((stage) => [stage, latency(stage)]));
  const count = reader.u32("vcpus");
  if (count > VCPUS_MAX) throw reader.corrupt("vcpus", count);
  reader.zero(4);
  const vcpus = Array.from({ length: count }, () => ({ blockedMs: reader.f64("blocked") }));
  reader.end();
  return { stages: stages as FaultsMessage["stages"], vcpus };
}

/** The body of LOST and of GONE. */
export function encodeChannel(number: number): Uint8Array {
  return new WireWriter().u16(number).u16(0).finish();
}

export function decodeChannel(body: Uint8Array, channel: number, channels: number): number {
  const reader = new WireReader(body, channel);
  const number = reader.u16("channel");
  reader.zero(2);
  reader.end();
  if (number < 1 || number > channels) throw reader.corrupt("channel", number);
  return number;
}

export const PRIORITY_CHANNELS_MAX = 4;

export function encodeLanes(priorityChannels: number): Uint8Array {
  return new WireWriter().u16(priorityChannels).u16(0).finish();
}

export function decodeLanes(body: Uint8Array, channel: number): number {
  const reader = new WireReader(body, channel);
  const lanes = reader.u16("priority channels");
  reader.zero(2);
  reader.end();
  if (lanes < 1 || lanes > PRIORITY_CHANNELS_MAX) throw reader.corrupt("priority channels", lanes);
  return lanes;
}

/** Pages of a block that are missing: bit b of word w is page `firstPage + 32 * w + b`. */
export interface DiscardMessage {
  readonly block: number;
  readonly firstPage: number;
  readonly bits: Int32Array;
}

export function encodeDiscard({ block, firstPage, bits }: DiscardMessage): Uint8Array {
  const writer = new WireWriter().u32(block).u32(firstPage);
  for (const word of bits) writer.u32(word >>> 0);
  return writer.finish();
}

/** Checked against the blocks, by name only of their sizes: every bit is a page that exists. */
export function decodeDiscard(
  body: Uint8Array,
  channel: number,
  blocks: readonly { readonly pageCount: number }[],
): DiscardMessage {
  const reader = new WireReader(body, channel);
  const block = reader.u32("block");
  const firstPage = reader.u32("first page");
  const { pageCount } = blocks[block] ?? { pageCount: -1 };
  if (pageCount === -1) throw reader.corrupt("block", block);
  if (firstPage % 32 !== 0 || firstPage >= pageCount) {
    throw reader.corrupt("first page", firstPage);
  }
  const words = (body.length - 8) / 4;
  if (!(words >= 1 && Number.isInteger(words))) throw reader.corrupt("bits", body.length);
  const bits = Int32Array.from({ length: words }, () => reader.u32("bits"));
  reader.end();
  const end = firstPage + words * 32;
  const spare = end - pageCount;
  const last = bits[words - 1] as number;
  if (spare >= 32 || (spare > 0 && last >>> (32 - spare) !== 0)) {
    throw reader.corrupt("pages beyond the block", end);
  }
  return { block, firstPage, bits };
}

export function encodeSwitch(pages: number): Uint8Array {
  return new WireWriter().u64(pages).finish();
}

export function decodeSwitch(body: Uint8Array, channel: number): number {
  const reader = new WireReader(body, channel);
  const pages = reader.u64("missing pages");
  reader.end();
  return pages;
}

/** A page that a guest waits for. */
export interface RequestMessage {
  readonly block: number;
  readonly page: number;
  readonly number: number;
}

export const REQUEST_BYTES = 12;

/**
 * Writes `REQUEST_BYTES` bytes at `at`. A guest waits meanwhile, in the same thread perhaps: neither this
 * nor its counterpart leaves much behind for the garbage collector, which takes milliseconds on a busy
 * machine.
 */
export function encodeRequest(view: DataView, at: number, request: RequestMessage): void {
  view.setUint32(at, request.block, true);
  view.setUint32(at + 4, request.page, true);
  view.setUint32(at + 8, request.number, true);
}

/** Checked against the blocks, and for coming in order. */
export function decodeRequest(
  body: Uint8Array,
  channel: number,
  wanted: { blocks: readonly { readonly pageCount: number }[]; number: number },
): RequestMessage {
  if (body.length < REQUEST_BYTES) {
    throw corrupt(channel, "body too short for a request", body.length);
  }
  if (body.length > REQUEST_BYTES) throw corrupt(channel, "body length", body.length);
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const block = view.getUint32(0, true);
  const page = view.getUint32(4, true);
  const number = view.getUint32(8, true);
  const found = wanted.blocks[block];
  if (found === undefined) throw corrupt(channel, "block", block);
  if (page >= found.pageCount) throw corrupt(channel, "page beyond the block", page);
  if (number !== wanted.number) throw corrupt(channel, "request number", number);
  return { block, page, number };
}

const CODE_BYTES_MAX = 64;
const FACTS_BYTES_MAX = 8 * KIB;

/** What is left of texts and lists in facts that are too long. Four texts fit, however escaped. */
const SHORT_TEXT = 300;
const SHORT_LIST = 4;

export function encodeFailure(failure: MigrationError): Uint8Array {
  const whole = JSON.stringify(failure.facts);
  const isTooLong = new TextEncoder().encode(whole).length > FACTS_BYTES_MAX;
  const facts = isTooLong ? JSON.stringify(failure.facts, shortened) : whole;
  return new WireWriter().str(failure.code).str(facts).finish();
}

function shortened(_name: string, value: unknown): unknown {
  if (Array.isArray(value)) return value.slice(0, SHORT_LIST);
  return typeof value === "string" ? value.slice(0, SHORT_TEXT) : value;
}

/**
 * A failure that the peer tells of. Refused as corrupt: facts that do not make a message, and codes
 * about who owns the guest, which is never for the other end to say.
 */
export function decodeFailure(body: Uint8Array, channel: number, peer: Origin): MigrationError {
  const reader = new WireReader(body, channel);
  const code = reader.str(CODE_BYTES_MAX, "failure code");
  const text = reader.str(FACTS_BYTES_MAX, "failure facts");
  reader.end();
  if (!isFailureCode(code)) throw reader.corrupt("failure code", "unknown");
  if (FAILURES[code].remedy === "settle") throw reader.corrupt("failure code", code);
  try {
    const facts = factsOf(JSON.parse(text) as object);
    FAILURES[code].says(checkedFacts(facts) as never);
    return new MigrationError(code, facts as never, { at: peer });
  } catch {
    throw reader.corrupt("failure facts", "unreadable");
  }
}

/** What else there is goes no further: nested deeply enough, no thread could hand it to another. */
function factsOf(told: object): object {
  return Object.fromEntries(Object.entries(told).filter(([, fact]) => isFact(fact)));
}

/** Facts that throw where a message uses one that is missing. */
function checkedFacts(facts: object): object {
  return new Proxy(facts, {
    get(target, name) {
      if (!Object.hasOwn(target, name)) throw new TypeError("a message has all its facts");
      return Reflect.get(target, name);
    },
  });
}

/** Text, a number or a list of them. */
function isFact(fact: unknown): boolean {
  const texts: readonly unknown[] = Array.isArray(fact) ? fact : [fact];
  return texts.every((text) => typeof text === "string" || typeof text === "number");
}
