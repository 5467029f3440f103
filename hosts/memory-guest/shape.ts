import { GIB, KIB, TIB } from "../../base/units.ts";
import type { BlockAnnouncement } from "../../engine/block.ts";

/** Everything that makes one embedded guest what it is. Plain JSON: it travels with the devices. */
export interface GuestShape {
  readonly blocks: readonly BlockAnnouncement[];
  /** An integer of 32 bits. Two guests of one shape hold the same bytes. */
  readonly seed: number;
  readonly content: ContentMix;
  readonly vcpus: readonly VcpuShape[];
}

/** The shares of memory of each kind at the start, spread over the pages. They sum to 1. */
export interface ContentMix {
  readonly zero: number;
  readonly text: number;
  readonly random: number;
}

/**
 * The order in which a vCPU visits its pages: one after the other; in strides that touch every page
 * once per sweep; or a hot tenth nine times as often as the rest.
 */
export type Pattern = "sweep" | "stride" | "hot";

/** One vCPU and the pages that only it writes. */
export interface VcpuShape {
  /** The block's name. */
  readonly block: string;
  readonly firstPage: number;
  readonly pageCount: number;
  readonly pattern: Pattern;
  /** Memory rewritten, counted in whole pages touched. 0 is an idle vCPU. */
  readonly rateBytesPerSecond: number;
  /** How much of a page each write changes, 8 to the whole page; two counters are 8 of them. */
  readonly changedBytes: number;
}

/** Threads are real: beyond this a shape is a mistake, or an attack. */
export const VCPUS_MAX = 64;
const BLOCKS_MAX = 256;
const NAME_LENGTH_MAX = 128;

/** Positions in a sweep are multiplied by a stride below this: 2^52 is still exact in a double. */
const REGION_PAGES_MAX = 2 ** 26;

const SEED_MAX = 2 ** 32 - 1;
const RATE_MAX = TIB;

/** Fractions written in decimal rarely sum to exactly 1. */
const SUM_TOLERANCE = 1e-9;

/**
 * A frozen copy of `given` with nothing but what a shape holds. Throws RangeError with every
 * problem found. Takes anything: at the destination a shape comes from the other host.
 */
export function checkShape(given: unknown): GuestShape {
  const problems: string[] = [];
  const shape = isRecord(given) ? given : {};
  if (!isRecord(given)) problems.push("a shape must be an object");
  const { seed } = shape;
  if (!isInteger(seed, 0, SEED_MAX)) problems.push(`seed must be in 0..${SEED_MAX}: ${said(seed)}`);
  problems.push(...contentProblems(shape["content"]));
  const blocks = listOf(shape["blocks"], "blocks", { min: 1, max: BLOCKS_MAX }, problems);
  const vcpus = listOf(shape["vcpus"], "vcpus", { min: 0, max: VCPUS_MAX }, problems);
  for (const [index, block] of blocks.entries()) problems.push(...blockProblems(block, index));
  problems.push(...twice(blocks.map(({ name }) => name)));
  for (const [index, vcpu] of vcpus.entries()) problems.push(...vcpuProblems(vcpu, index, blocks));
  if (problems.length === 0) problems.push(...overlaps(vcpus as unknown as VcpuShape[]));
  if (problems.length > 0) throw new RangeError(`Cannot use this guest: ${problems.join("; ")}`);
  return copyOf(given as GuestShape);
}

/** What is wrong with one block's description; `label` begins each sentence. */
export function announcementProblems(block: BlockAnnouncement, label: string): string[] {
  const { name, sizeBytes, pageBytes } = block;
  const problems: string[] = [];
  if (typeof name !== "string" || name.length === 0 || name.length > NAME_LENGTH_MAX) {
    problems.push(`${label} must have a name of 1 to ${NAME_LENGTH_MAX} characters`);
  }
  if (!isInteger(pageBytes, 4 * KIB, GIB) || (pageBytes & (pageBytes - 1)) !== 0) {
    problems.push(`${label} must have a page size of 4 KiB to 1 GiB: ${said(pageBytes)}`);
  } else if (!isInteger(sizeBytes, pageBytes, Number.MAX_SAFE_INTEGER) || sizeBytes % pageBytes) {
    problems.push(`${label} must have a size of whole pages: ${said(sizeBytes)}`);
  }
  return problems;
}

function blockProblems(block: Fields, index: number): string[] {
  return announcementProblems(block as unknown as BlockAnnouncement, `block ${index}`);
}

function contentProblems(content: unknown): string[] {
  const shares = isRecord(content) ? content : {};
  const values = [shares["zero"], shares["text"], shares["random"]];
  if (!values.every((share) => typeof share === "number" && share >= 0 && share <= 1)) {
    return ["content must have zero, text and random as fractions of 0 to 1"];
  }
  const sum = (values as number[]).reduce((total, share) => total + share, 0);
  return Math.abs(sum - 1) <= SUM_TOLERANCE ? [] : [`content must sum to 1: ${sum}`];
}

function vcpuProblems(vcpu: Fields, index: number, blocks: readonly Fields[]): string[] {
  const problems: string[] = [];
  const must = (holds: boolean, field: string, wanted: string) => {
    if (!holds) problems.push(`vcpu ${index} ${field} must be ${wanted}: ${said(vcpu[field])}`);
  };
  const block = blocks.find(({ name }) => name === vcpu["block"]);
  const pageBytes = typeof block?.["pageBytes"] === "number" ? block["pageBytes"] : GIB;
  const { pattern, firstPage, pageCount } = vcpu;
  const fewest = pattern === "hot" ? 2 : 1;
  must(block !== undefined, "block", "the name of a block");
  must(pattern === "sweep" || pattern === "stride" || pattern === "hot", "pattern", "known");
  must(isInteger(firstPage, 0, Number.MAX_SAFE_INTEGER), "firstPage", "a page number");
  must(isInteger(pageCount, fewest, REGION_PAGES_MAX), "pageCount", `of ${fewest} or more pages`);
  if (Number(firstPage) + Number(pageCount) > Number(block?.["sizeBytes"]) / pageBytes) {
    problems.push(`vcpu ${index} must stay in block "${String(vcpu["block"])}"`);
  }
  const rate = vcpu["rateBytesPerSecond"];
  must(typeof rate === "number" && rate >= 0 && rate <= RATE_MAX, "rateBytesPerSecond", "a rate");
  must(isInteger(vcpu["changedBytes"], 8, pageBytes), "changedBytes", `in 8..${pageBytes}`);
  return problems;
}

function overlaps(vcpus: readonly VcpuShape[]): string[] {
  return vcpus.flatMap((one, index) =>
    vcpus.slice(index + 1).flatMap((other, distance) => {
      const isApart =
        one.block !== other.block ||
        one.firstPage + one.pageCount <= other.firstPage ||
        other.firstPage + other.pageCount <= one.firstPage;
      return isApart ? [] : [`vcpus ${index} and ${index + 1 + distance} must not share pages`];
    }),
  );
}

function twice(names: readonly unknown[]): string[] {
  return [...new Set(names.filter((name, index) => names.indexOf(name) !== index))].map(
    (name) => `block names must differ: ${said(name)} comes twice`,
  );
}

function copyOf({ blocks, seed, content, vcpus }: GuestShape): GuestShape {
  const { zero, text, random } = content;
  return Object.freeze({
    blocks: blocks.map(({ name, sizeBytes, pageBytes }) => ({ name, sizeBytes, pageBytes })),
    seed,
    content: { zero, text, random },
    vcpus: vcpus.map((vcpu) => ({
      block: vcpu.block,
      firstPage: vcpu.firstPage,
      pageCount: vcpu.pageCount,
      pattern: vcpu.pattern,
      rateBytesPerSecond: vcpu.rateBytesPerSecond,
      changedBytes: vcpu.changedBytes,
    })),
  });
}

type Fields = Readonly<Record<string, unknown>>;

/** An object whose fields may be anything. */
export function isRecord(value: unknown): value is Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function isInteger(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max;
}

function listOf(
  value: unknown,
  name: string,
  { min, max }: { min: number; max: number },
  problems: string[],
): readonly Fields[] {
  if (Array.isArray(value) && value.length >= min && value.length <= max && value.every(isRecord)) {
    return value;
  }
  problems.push(`${name} must be a list of ${min} to ${max} objects`);
  return [];
}

/** A value as a problem quotes it, short whatever it is. */
function said(value: unknown): string {
  return (typeof value === "string" ? `"${value}"` : String(value)).slice(0, NAME_LENGTH_MAX);
}
