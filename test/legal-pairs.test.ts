import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import type { MigrationError } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";
import { flagsOf, parseFlags } from "../cli/flags.ts";
import { FREE_GUEST_FEATURES, GUEST_FEATURES, type GuestFeatures } from "../cli/guest-rules.ts";
import { checkedFeatures, LEGALITY_CHECK } from "../cli/legality.ts";
import { brokenRules, RULES } from "../cli/rules.ts";
import { migrateIn } from "../engine/destination.ts";
import { FEATURES, type Features, FREE_FEATURES } from "../engine/features.ts";
import { LEGALITY, legalityProblems, subjectsOf } from "../engine/legality.ts";
import {
  PARAMETER_KEYS,
  type ParameterKey,
  type ParameterOptions,
  type Parameters,
  resolveParameters,
  rowOf,
} from "../engine/parameters.ts";
import { migrateOut } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { type End, moveIn, moveOut, received, type Terms } from "./fixtures/legal-ends.ts";
import { GUEST_BYTES, guestPages } from "./fixtures/legal-hosts.ts";
import { outputOf, startConnected } from "./harness/connected-processes.ts";
import { difference } from "./harness/guest-memory.ts";
import { outcomeOf } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const random = new Prng(seed);

const folder = mkdtempSync(join(tmpdir(), "multifd-legal-"));
afterAll(() => rmSync(folder, { recursive: true }));

/**
 * Every value of what has few, and others away from the default; a guest must be able to move with
 * each of them within a second.
 */
const VALUES: { readonly [K in ParameterKey]: readonly Parameters[K][] } = {
  channels: [1, 2],
  chunkBytes: [128 * KIB, 1 * MIB],
  checksum: [false, true],
  // Whatever else this machine does: with one round, what is left must fit.
  downtimeLimitMs: [30_000],
  maxBandwidthBytesPerSecond: [32 * MIB],
  maxRounds: [1, 2, 100],
  timeoutMs: [60_000],
  nonConvergence: ["cancel", "switch-over"],
  postcopy: ["never", "manual", "after-rounds", "not-converging"],
  postcopyRounds: [2],
  priorityChannels: [1, 2],
  autoConverge: [false, true],
  throttleInitialPercent: [30],
  throttleIncrementPercent: [5],
  throttleMaxPercent: [60],
  compression: ["none", "zstd", "deflate", "auto"],
  zstdLevel: [3],
  deflateLevel: [6],
  cpuLimitCores: [0.5],
  autoExtraTimePercent: [100],
  xbzrle: [false, true],
  xbzrleCacheBytes: [64 * KIB, 16 * MIB],
  connectTimeoutMs: [5000],
  reconnectTimeoutMs: [5000],
  recoverTimeoutMs: [5000],
  channelTimeoutMs: [9000],
  stepTimeoutMs: [20_000],
  acceptTimeoutMs: [60_000],
  deviceLimitBytes: [1 * MIB],
};

/**
 * What is no parameter: where the guest goes, whose it is, what its hosts can do, and by what flags
 * commands are told of it. An `fd` address names just the descriptors that the configuration needs,
 * or one too few. A host of an embedder's own is `own`. Flags that are not said are left out, and
 * those of one end alone are given there, unless they are given in the wrong place, too.
 */
const SURROUNDINGS = {
  address: ["tcp", "unix", "exec", "fd", "fd, one short", "file"],
  host: ["own", "files", "qemu", "memory-guest"],
  throttle: [true, false],
  dirtyLog: ["none", "bitmap", "scan"],
  faults: [true, false],
  memory: ["given"],
  qemu: ["given"],
  pauseCommand: ["given", "given at both ends"],
  resumeCommand: ["given"],
  memoryGuest: ["given"],
  shape: ["given", "given at both ends"],
  vcpus: ["given"],
  runFor: ["given", "given at both ends"],
  live: [true],
  postcopySwitch: [true],
  recovery: [true],
  threads: [true],
  record: ["given"],
} as const;
type Surrounding = keyof typeof SURROUNDINGS;

/** With these nothing is legal. */
const WRONG_IN_ITSELF: readonly unknown[] = ["file", "fd, one short", "given at both ends"];

const FLAGS = [
  "memory",
  "qemu",
  "pauseCommand",
  "resumeCommand",
  "memoryGuest",
  "shape",
  "vcpus",
  "runFor",
] as const;
/** Of these, what is said at one end alone. */
const SIDE_OF: { readonly [flag: string]: Side } = {
  pauseCommand: "source",
  resumeCommand: "source",
  shape: "source",
  runFor: "destination",
};
const FREE = [...Object.keys(FREE_FEATURES), ...Object.keys(FREE_GUEST_FEATURES)];

/** Both ends get the same parameters, and each judges for itself. */
const SIDES = ["source", "destination"] as const;
type Side = (typeof SIDES)[number];

/** One choice for one thing; a configuration has at most one for each. */
interface Setting {
  /** Its place among all of them. */
  readonly index: number;
  readonly name: ParameterKey | Surrounding;
  readonly value: unknown;
}

type Configuration = readonly Setting[];

const NAMES = [...PARAMETER_KEYS, ...(Object.keys(SURROUNDINGS) as Surrounding[])];

const SETTINGS: readonly Setting[] = NAMES.flatMap((name) =>
  (name in SURROUNDINGS ? SURROUNDINGS[name as Surrounding] : VALUES[name as ParameterKey]).map(
    (value) => ({ name, value }),
  ),
).map((setting, index) => ({ ...setting, index }));

const PAIRS: readonly (readonly [Setting, Setting])[] = SETTINGS.flatMap((one, index) =>
  SETTINGS.slice(index + 1)
    .filter((other) => other.name !== one.name)
    .map((other) => [one, other] as const),
).filter((pair) => !hasForeignFlags(pair));

/** No command knows a host of an embedder's own, which is told of by no flags. */
function hasForeignFlags(configuration: Configuration): boolean {
  const isOwn = settingOf(configuration, "host") === "own";
  return isOwn && FLAGS.some((flag) => hasSetting(configuration, flag));
}

function textOf(configuration: Configuration): string {
  return configuration.map(({ name, value }) => `${name} ${String(value)}`).join(", ");
}

function optionsOf(configuration: Configuration): ParameterOptions {
  const parameters = configuration.filter(({ name }) => name in VALUES);
  return Object.fromEntries(parameters.map(({ name, value }) => [name, value]));
}

function settingOf(configuration: Configuration, name: Setting["name"]): unknown {
  return configuration.find((setting) => setting.name === name)?.value;
}

function hasSetting(configuration: Configuration, name: Setting["name"]): boolean {
  return configuration.some((setting) => setting.name === name);
}

const DEFAULTS = resolveParameters();

function parametersOf(configuration: Configuration): Parameters {
  return { ...DEFAULTS, ...optionsOf(configuration) };
}

function addressOf(configuration: Configuration): (typeof SURROUNDINGS.address)[number] {
  return (settingOf(configuration, "address") ?? "tcp") as "tcp";
}

/** As many as there are connections, or one less. */
function descriptorsOf(configuration: Configuration): number {
  const { channels, postcopy } = parametersOf(configuration);
  const connections = 1 + channels + (postcopy === "never" ? 0 : 1);
  return addressOf(configuration) === "fd" ? connections : connections - 1;
}

function descriptorAddress(count: number): string {
  return `fd:${Array.from({ length: count }, (_, index) => 3 + index).join(",")}`;
}

/** Whose guest it is: as the flags say, where that is not said. */
function hostOf(configuration: Configuration): Terms["host"] {
  const host = settingOf(configuration, "host");
  if (host !== undefined) return host as "own";
  if (hasSetting(configuration, "qemu")) return "qemu";
  if (hasSetting(configuration, "memoryGuest")) return "memory-guest";
  return FLAGS.some((flag) => hasSetting(configuration, flag)) ? "files" : "own";
}

/** What hosts can do where nothing else is said. QEMU's guest can be throttled where there are rights. */
const ABILITIES = {
  own: { throttle: true, dirtyLog: "bitmap", faults: true },
  files: { throttle: false, dirtyLog: "none", faults: false },
  qemu: { throttle: true, dirtyLog: "scan", faults: false },
  "memory-guest": { throttle: true, dirtyLog: "bitmap", faults: true },
} as const;

function termsOf(configuration: Configuration): Terms {
  const host = hostOf(configuration);
  const ability = <N extends keyof typeof ABILITIES.own>(name: N) =>
    (settingOf(configuration, name) ?? ABILITIES[host][name]) as Required<Features>[N];
  return {
    seed,
    options: optionsOf(configuration),
    host,
    canThrottle: ability("throttle"),
    dirtyLog: ability("dirtyLog"),
    hasFaults: ability("faults"),
    hasCommands: hasSetting(configuration, "pauseCommand"),
    free: FREE.filter((name) => hasSetting(configuration, name as Surrounding)),
    folder,
  };
}

/** What the engine knows at each end: only the source has a host that throttles and finds writes. */
function featuresOf(configuration: Configuration, side: Side): Features {
  const { canThrottle: throttle, dirtyLog, hasFaults: faults } = termsOf(configuration);
  const address = addressOf(configuration);
  return {
    side,
    migration: "live",
    ...(address === "fd" || address === "fd, one short"
      ? { address: "fd", descriptors: descriptorsOf(configuration) }
      : { address }),
    ...(side === "source" ? { throttle, dirtyLog } : { faults }),
  };
}

/** The flags that the command of one end is given. */
function flagsAt(configuration: Configuration, side: Side): readonly (typeof FLAGS)[number][] {
  return FLAGS.filter((name) => {
    const value = settingOf(configuration, name);
    const isOfOtherEnd = (SIDE_OF[name] ?? side) !== side;
    return value === "given at both ends" || (value === "given" && !isOfOtherEnd);
  });
}

/** What commands know beside that. */
function guestFeaturesOf(configuration: Configuration, side: Side): GuestFeatures {
  const host = hostOf(configuration);
  const given = flagsAt(configuration, side);
  const flags = FLAGS.map((name) => [name, given.includes(name) ? "given" : "left out"]);
  return {
    ...featuresOf(configuration, side),
    ...Object.fromEntries(flags),
    ...(host === "own" ? {} : { host }),
  };
}

/** The rules that a configuration breaks at one end, as commands judge. */
function brokenBy(configuration: Configuration, side: Side) {
  return brokenRules(optionsOf(configuration), guestFeaturesOf(configuration, side));
}

/** Those of the engine's alone. */
function brokenAtTheDoor(configuration: Configuration, side: Side) {
  return legalityProblems({
    parameters: parametersOf(configuration),
    given: Object.keys(optionsOf(configuration)),
    features: featuresOf(configuration, side),
  });
}

function brokenAnywhere(configuration: Configuration): string | undefined {
  for (const side of SIDES) {
    const [first] = brokenBy(configuration, side);
    if (first !== undefined) return first.rule;
  }
  return undefined;
}

/** What every rule speaks of, by its id; the descriptors are part of the address. */
const SUBJECTS = new Map(
  RULES.map((rule) => [
    rule.id,
    [...subjectsOf(rule)].map((name): string => (name === "descriptors" ? "address" : name)),
  ]),
);

/** So many more settings a pair may need; what needs more is never legal. */
const REPAIRS = 4;

/**
 * The configuration with whatever else it needs to be legal, or null. A broken rule can only be
 * mended by something that it speaks of.
 */
function legalWay(configuration: Configuration, repairs = REPAIRS): Configuration | null {
  if (hasForeignFlags(configuration)) return null;
  const rule = brokenAnywhere(configuration);
  if (rule === undefined) return configuration;
  if (repairs === 0) return null;
  const names = must(SUBJECTS.get(rule), "a broken rule is in the table").filter(
    (name) => !hasSetting(configuration, name as Setting["name"]),
  );
  for (const setting of shuffled(SETTINGS.filter(({ name }) => names.includes(name)))) {
    const repaired = legalWay([...configuration, setting], repairs - 1);
    if (repaired !== null) return repaired;
  }
  return null;
}

function shuffled<T>(items: readonly T[]): T[] {
  const left = [...items];
  return items.flatMap(() => left.splice(random.below(left.length), 1));
}

function keyOf(one: Setting, other: Setting): number {
  const [low, high] = [Math.min(one.index, other.index), Math.max(one.index, other.index)];
  return low * SETTINGS.length + high;
}

function pairsIn(configuration: Configuration): number[] {
  return configuration.flatMap((one, index) =>
    configuration.slice(index + 1).map((other) => keyOf(one, other)),
  );
}

const POSSIBLE: ReadonlySet<number> = new Set(
  PAIRS.filter((pair) => legalWay(pair) !== null).map((pair) => keyOf(...pair)),
);

/** Growing is random, and cheap beside a migration. */
const TRIES = 6;

/** Few configurations, all legal, in which every pair is that can be legal at all. */
function coveringConfigurations(): Configuration[] {
  const left = new Set(POSSIBLE);
  const made: Configuration[] = [];
  for (const pair of PAIRS) {
    if (!left.has(keyOf(...pair))) continue;
    const grown = Array.from({ length: TRIES }, () =>
      grow(must(legalWay(pair), "a pair that can be legal is so in some way"), left),
    );
    const best = grown.reduce((most, each) => (gain(each, left) > gain(most, left) ? each : most));
    for (const key of pairsIn(best)) left.delete(key);
    made.push(best);
  }
  return made;
}

function gain(configuration: Configuration, left: ReadonlySet<number>): number {
  return pairsIn(configuration).filter((key) => left.has(key)).length;
}

/** Adds to a configuration, for one thing after the other, what brings the most pairs that are left. */
function grow(start: Configuration, left: ReadonlySet<number>): Configuration {
  let configuration = start;
  for (const name of shuffled(NAMES)) {
    if (hasSetting(configuration, name)) continue;
    const brings = (setting: Setting) =>
      configuration.filter((other) => left.has(keyOf(other, setting))).length;
    const choices = SETTINGS.filter((setting) => setting.name === name)
      .map((setting) => ({ setting, gain: brings(setting) }))
      .filter((choice) => choice.gain > 0)
      .sort((one, other) => other.gain - one.gain);
    for (const { setting } of choices) {
      const way = legalWay([...configuration, setting], 2);
      if (way === null) continue;
      configuration = way;
      break;
    }
  }
  for (const setting of SAFE) {
    if (hasSetting(configuration, setting.name)) continue;
    configuration = legalWay([...configuration, setting], 0) ?? configuration;
  }
  return configuration;
}

/** What every configuration has that may: one thread costs least, and a busy machine is no failure. */
const SAFE = SETTINGS.filter(
  ({ name, value }) => (name === "channels" && value === 1) || name === "downtimeLimitMs",
);

const BRIDGE = fileURLToPath(new URL("fixtures/cli-bridge.ts", import.meta.url));
let sockets = 0;

/** Where the destination listens, and how the source gets there. */
function route(configuration: Configuration): {
  listen: string;
  reach: (listening: string) => string;
} {
  const address = addressOf(configuration);
  if (address === "tcp") return { listen: "tcp:127.0.0.1:0", reach: (listening) => listening };
  sockets += 1;
  const path = join(folder, `${sockets}`);
  const bridge = `exec:exec '${process.execPath}' '${BRIDGE}' '${path}'`;
  const reach = (listening: string) => (address === "exec" ? bridge : listening);
  return { listen: `unix:${path}`, reach };
}

interface Ends {
  readonly source: End;
  readonly destination: End;
}

async function endsHere(configuration: Configuration, terms: Terms): Promise<Ends> {
  const { listen, reach } = route(configuration);
  const listening = Promise.withResolvers<string>();
  const arriving = moveIn(listen, terms, listening.resolve);
  arriving.catch(listening.reject);
  const source = await moveOut(reach(await listening.promise), terms);
  return { source, destination: await arriving };
}

const PROGRAM = fileURLToPath(new URL("fixtures/legal-ends.ts", import.meta.url));

/** Descriptors are inherited by processes. */
async function endsInProcesses(configuration: Configuration, terms: Terms): Promise<Ends> {
  const count = descriptorsOf(configuration);
  const argv = [descriptorAddress(count), JSON.stringify(terms)];
  const { source, destination } = startConnected(count, {
    source: [PROGRAM, "out", ...argv],
    destination: [PROGRAM, "in", ...argv],
  });
  const [left, arrived] = await Promise.all([outputOf(source), outputOf(destination)]);
  return { source: received(left), destination: received(arrived) };
}

async function migrated(configuration: Configuration, terms: Terms): Promise<Report> {
  const isInherited = addressOf(configuration) === "fd";
  const move = isInherited ? endsInProcesses : endsHere;
  const { source, destination } = await move(configuration, terms);
  expect(difference(source.blocks, destination.blocks)).toBeNull();
  expect(source.blocks.length > 0).toBe(terms.host !== "memory-guest");
  expect(destination.damage).toEqual([]);
  expect([source.running, destination.running]).toEqual([false, true]);
  expect(source.calls).toContain("pause");
  expect(source.calls).not.toContain("resume");
  expect(destination.owner).toBe(terms.free.includes("record") ? "destination" : null);
  // What a lane sent once more came as raw as the rest, as far as the destination can tell.
  const again = destination.report.pages.raw - source.report.pages.raw;
  expect(again).toBeGreaterThanOrEqual(0);
  expect(again).toBeLessThanOrEqual(source.report.faults?.repeatedPages ?? 0);
  return source.report;
}

/**
 * Whether pages that the guest writes again have a version: a single channel's, for another one that
 * goes on with a chunk has none, in a cache that holds all of them. Other hosts' guests may write
 * what was zero, or nothing in time.
 */
function knowsWrites(configuration: Configuration, { host, dirtyLog }: Terms): boolean {
  const { channels, xbzrleCacheBytes } = parametersOf(configuration);
  const hasRoom = xbzrleCacheBytes >= GUEST_BYTES;
  return host === "own" && channels === 1 && hasRoom && dirtyLog !== "none";
}

const CONFIGURATIONS = coveringConfigurations();

for (const [index, configuration] of CONFIGURATIONS.entries()) {
  test(`a guest moves, legal configuration ${index + 1} (SEED=${seed})`, async () => {
    const own = join(folder, `guest-${index}`);
    mkdirSync(own);
    const terms = { ...termsOf(configuration), folder: own };
    const { pages, rounds, channels } = await migrated(configuration, terms).catch(
      (error: unknown) => {
        throw new Error(textOf(configuration), { cause: error });
      },
    );
    const bulk = channels.filter(({ lane }) => lane === "bulk");
    expect(bulk).toHaveLength(parametersOf(configuration).channels);
    const described = pages.zero + pages.unchanged + pages.delta + pages.compressed + pages.raw;
    const sentPages = rounds.reduce((sum, round) => sum + round.sentPages, 0);
    expect(described).toBe(sentPages);
    if (terms.dirtyLog === "none") expect(sentPages).toBe(guestPages(terms));
    // A guest with threads of its own may write nothing in so short a time.
    else if (terms.host === "memory-guest") {
      expect(sentPages).toBeGreaterThanOrEqual(guestPages(terms));
    } else expect(sentPages).toBeGreaterThan(guestPages(terms));
    const compression = settingOf(configuration, "compression") ?? "none";
    if (compression === "none") expect(pages.compressed).toBe(0);
    // With `auto` it depends on the link; the first round always has something that shrinks.
    if (["zstd", "deflate"].includes(String(compression))) {
      expect(pages.compressed).toBeGreaterThan(0);
    }
    const hasDeltas = settingOf(configuration, "xbzrle") === true || compression === "auto";
    if (!hasDeltas) expect(pages.delta + pages.unchanged).toBe(0);
    if (hasDeltas && knowsWrites(configuration, terms)) expect(pages.delta).toBeGreaterThan(0);
  });
}

test("every pair is in a configuration that migrates, or breaks a rule whatever else is there", () => {
  const covered = new Set(CONFIGURATIONS.flatMap(pairsIn));
  const wrong = PAIRS.filter(
    (pair) => covered.has(keyOf(...pair)) !== POSSIBLE.has(keyOf(...pair)),
  );
  expect(wrong.map(textOf)).toEqual([]);
  expect(CONFIGURATIONS.map(brokenAnywhere)).toEqual(CONFIGURATIONS.map(() => undefined));
  // Two settings that exclude each other are rare, where nothing is wrong in itself.
  const isWrong = ({ value }: Setting) => WRONG_IN_ITSELF.includes(value);
  const reachable = PAIRS.filter((pair) => !pair.some(isWrong));
  expect(covered.size).toBeGreaterThan(reachable.length * 0.9);
  const migrated = new Set(CONFIGURATIONS.flat());
  expect(SETTINGS.filter((setting) => migrated.has(setting) === isWrong(setting))).toEqual([]);
  expect(CONFIGURATIONS.length).toBeLessThan(60);
});

test("every parameter is tried, with each value of the few that it may have, and every feature", () => {
  for (const key of PARAMETER_KEYS) {
    const row = rowOf(key);
    const values = SETTINGS.filter(({ name }) => name === key).map(({ value }) => value);
    if (row.type === "choice") expect(values).toEqual(row.choices);
    else if (row.type === "boolean") expect(values).toEqual([false, true]);
    else expect(values.length, key).toBeGreaterThan(0);
  }
  const tried = new Map<string, Set<unknown>>();
  for (const pair of PAIRS) {
    for (const features of SIDES.map((side) => guestFeaturesOf(pair, side))) {
      for (const [name, value] of Object.entries(features)) {
        tried.set(name, (tried.get(name) ?? new Set()).add(value));
      }
    }
  }
  const rows = { ...FEATURES, ...GUEST_FEATURES };
  expect([...tried.keys()].sort()).toEqual(Object.keys(rows).sort());
  for (const [name, { values }] of Object.entries(rows)) {
    if (values === "count") expect(tried.get(name)?.size).toBeGreaterThan(2);
    else expect([...(tried.get(name) ?? [])].sort(), name).toEqual([...values].sort());
  }
  const free = FREE.filter((name) => !SETTINGS.some((setting) => setting.name === name));
  expect(free).toEqual([]);
});

/** Where the judged end would go if it began. */
function targetOf(configuration: Configuration): string {
  const address = addressOf(configuration);
  const targets = { tcp: "tcp:127.0.0.1:1", unix: "unix:/nowhere", exec: "exec:false", file: "" };
  return address === "fd" || address === "fd, one short"
    ? descriptorAddress(descriptorsOf(configuration))
    : targets[address];
}

const ONE_PAGE = [{ name: "ram", sizeBytes: 4 * KIB, pageBytes: 4 * KIB }];

/** What an end says of a configuration before it touches anything: nothing if it would begin. */
async function problemsAtTheDoor(
  configuration: Configuration,
  side: Side,
): Promise<readonly string[]> {
  const target = targetOf(configuration);
  // Cancelled before it begins: so it is judged, and no more.
  const options = { ...optionsOf(configuration), signal: AbortSignal.abort() };
  const source = new RecordingSource({ ...termsOf(configuration), shape: ONE_PAGE });
  const destination = new RecordingDestination();
  if (!termsOf(configuration).hasFaults) {
    Object.defineProperty(destination, "takeFaults", { value: undefined });
  }
  const { failure } = await outcomeOf(
    side === "source"
      ? migrateOut(source, target, options)
      : migrateIn(destination, target, options),
  );
  expect([...source.calls, ...destination.calls]).toEqual([]);
  if (failure?.code === "CANCELLED") return [];
  expect(failure?.code, textOf(configuration)).toBe("CONFIGURATION_INVALID");
  return (failure as MigrationError<"CONFIGURATION_INVALID">).facts.problems;
}

const REASONS = new Map<string, string>(RULES.map(({ id, reason }) => [id, reason]));

/** Holds what was said against the rules that were broken: each with its reason, and nothing else. */
function expectReasons(text: string, rules: readonly string[], said: readonly string[]): void {
  expect(said, text).toHaveLength(rules.length);
  for (const [index, rule] of rules.entries()) {
    const reason = must(REASONS.get(rule), "every rule has a reason").slice(0, -1);
    expect(said[index]?.toLowerCase(), text).toContain(reason.toLowerCase());
  }
}

/** Rules about more than two settings, or about values with which no guest would move. */
const BESIDE: Readonly<Record<string, ParameterOptions & { address?: "fd" }>> = {
  "timeout-exceeds-downtime": { downtimeLimitMs: 1001, timeoutMs: 1000 },
  "throttle-in-order": { autoConverge: true, throttleInitialPercent: 51, throttleMaxPercent: 50 },
  "postcopy-rounds-are-rounds": { postcopy: "after-rounds", postcopyRounds: 2, maxRounds: 1 },
  "postcopy-leaves-room-for-priority": { channels: 61, postcopy: "manual" },
  "fd-has-one-priority-channel": { address: "fd", postcopy: "manual", priorityChannels: 2 },
};

function configurationOf(settings: object): Configuration {
  return Object.entries(settings).map(([name, value]) => ({ name, value }) as Setting);
}

/** What only commands know, or what changes nothing: the engine's doors see the rest. */
const UNSEEN = new Set<string>(["host", ...FLAGS, ...FREE]);

test("each end refuses every pair that is illegal there, with the reason of each rule that it breaks, and no other pair", async () => {
  const refusedBy = new Set<string>();
  const refusals = async (configuration: Configuration, side: Side) => {
    const rules = brokenAtTheDoor(configuration, side).map(({ rule }) => rule);
    const said = await problemsAtTheDoor(configuration, side);
    expectReasons(`${textOf(configuration)} at the ${side}`, rules, said);
    for (const rule of rules) refusedBy.add(rule);
    return rules;
  };
  for (const pair of PAIRS.filter((each) => addressOf(each) !== "file")) {
    if (pair.some(({ name }) => UNSEEN.has(name))) continue;
    for (const side of SIDES) await refusals(pair, side);
  }
  for (const [rule, settings] of Object.entries(BESIDE)) {
    for (const side of SIDES)
      expect(await refusals(configurationOf(settings), side)).toEqual([rule]);
  }
  const expected = LEGALITY.map(({ id }) => id).filter((id) => id !== "file-is-not-live");
  expect([...refusedBy].sort()).toEqual(expected.sort());
});

const FLAG_NAMES = {
  memory: "--memory=ram=file:/nowhere",
  qemu: "--qemu=/nowhere",
  pauseCommand: "--pause-command=x",
  resumeCommand: "--resume-command=y",
  memoryGuest: "--memory-guest",
  shape: "--size=1GiB",
  vcpus: "--vcpus=4",
  runFor: "--run-for=2s",
};

/** What asks for a configuration's verdict before anything starts. */
function checkOf(configuration: Configuration, side: Side): string[] {
  const { throttle, dirtyLog, faults } = featuresOf(configuration, side);
  const host = hostOf(configuration);
  return [
    addressOf(configuration) === "file" ? "file:/nowhere" : targetOf(configuration),
    `--side=${side}`,
    ...flagsOf(optionsOf(configuration)),
    ...flagsAt(configuration, side).map((name) => FLAG_NAMES[name]),
    ...(host === "own" ? [] : [`--host=${host}`]),
    ...(throttle === undefined ? [] : [throttle ? "--throttle" : "--no-throttle"]),
    ...(faults === undefined ? [] : [faults ? "--faults" : "--no-faults"]),
    ...(dirtyLog === undefined ? [] : [`--dirty-log=${dirtyLog}`]),
  ];
}

test("commands refuse every illegal pair with a host, a flag or a file as well, and no other pair", () => {
  const refusedBy = new Set<string>();
  for (const pair of PAIRS) {
    const isSeen = pair.some(({ name }) => name === "host" || FLAGS.includes(name as "memory"));
    if (!isSeen && addressOf(pair) !== "file") continue;
    for (const side of SIDES) {
      const rules = brokenBy(pair, side).map(({ rule }) => rule);
      const parsed = parseFlags(LEGALITY_CHECK, checkOf(pair, side));
      const text = `${textOf(pair)} at the ${side}`;
      expect(parsed.mistakes, text).toEqual([]);
      const problems = brokenRules(parsed.options, checkedFeatures(parsed));
      const said = problems.map(({ message }) => message);
      expect(
        problems.map(({ rule }) => rule),
        text,
      ).toEqual(rules);
      expectReasons(text, rules, said);
      for (const rule of rules) refusedBy.add(rule);
    }
  }
  const own = RULES.map(({ id }) => id).filter((id) => !LEGALITY.some((rule) => rule.id === id));
  expect([...own, "file-is-not-live"].filter((id) => !refusedBy.has(id))).toEqual([]);
});
