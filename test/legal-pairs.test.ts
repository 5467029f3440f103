import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import type { MigrationError } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";
import { brokenRules } from "../cli/legality.ts";
import { migrateIn } from "../engine/destination.ts";
import { FEATURES, type Features, LEGALITY, legalityProblems } from "../engine/legality.ts";
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
import {
  type End,
  GUEST_BYTES,
  GUEST_PAGES,
  moveIn,
  moveOut,
  received,
  type Terms,
} from "./fixtures/legal-ends.ts";
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
  channels: [1, 3],
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
 * What is no parameter: where the guest goes, and what its host can do. An `fd` address names just
 * the descriptors that the configuration needs, or one too few.
 */
const SURROUNDINGS = {
  address: ["tcp", "unix", "exec", "fd", "fd, one short", "file"],
  throttle: [true, false],
  dirtyLog: ["none", "bitmap", "scan"],
} as const;

/** Both ends get the same parameters, and each judges for itself. */
const SIDES = ["source", "destination"] as const;
type Side = (typeof SIDES)[number];

/** One choice for one thing; a configuration has at most one for each. */
interface Setting {
  readonly name: ParameterKey | keyof typeof SURROUNDINGS;
  readonly value: unknown;
}

type Configuration = readonly Setting[];

const SETTINGS: readonly Setting[] = [
  ...PARAMETER_KEYS.flatMap((name) => VALUES[name].map((value) => ({ name, value }))),
  ...SURROUNDINGS.address.map((value) => ({ name: "address", value }) as const),
  ...SURROUNDINGS.throttle.map((value) => ({ name: "throttle", value }) as const),
  ...SURROUNDINGS.dirtyLog.map((value) => ({ name: "dirtyLog", value }) as const),
];

const PAIRS: readonly (readonly [Setting, Setting])[] = SETTINGS.flatMap((one, index) =>
  SETTINGS.slice(index + 1)
    .filter((other) => other.name !== one.name)
    .map((other) => [one, other] as const),
);

function textOf(configuration: Configuration): string {
  return configuration.map(({ name, value }) => `${name} ${String(value)}`).join(", ");
}

function optionsOf(configuration: Configuration): ParameterOptions {
  const parameters = configuration.filter(({ name }) => Object.hasOwn(VALUES, name));
  return Object.fromEntries(parameters.map(({ name, value }) => [name, value]));
}

function settingOf(configuration: Configuration, name: Setting["name"]): unknown {
  return configuration.find((setting) => setting.name === name)?.value;
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

function termsOf(configuration: Configuration): Terms {
  return {
    seed,
    options: optionsOf(configuration),
    canThrottle: settingOf(configuration, "throttle") !== false,
    dirtyLog: (settingOf(configuration, "dirtyLog") ?? "bitmap") as "bitmap",
  };
}

/** What each end knows: only the source has a host that throttles and finds writes. */
function featuresOf(configuration: Configuration, side: Side): Features {
  const { canThrottle: throttle, dirtyLog } = termsOf(configuration);
  const address = addressOf(configuration);
  return {
    side,
    migration: "live",
    ...(address === "fd" || address === "fd, one short"
      ? { address: "fd", descriptors: descriptorsOf(configuration) }
      : { address }),
    ...(side === "source" ? { throttle, dirtyLog } : {}),
  };
}

/** The rules that a configuration breaks at one end. */
function brokenBy(configuration: Configuration, side: Side) {
  return legalityProblems({
    parameters: parametersOf(configuration),
    given: Object.keys(optionsOf(configuration)),
    features: featuresOf(configuration, side),
  });
}

function isLegal(configuration: Configuration): boolean {
  return SIDES.every((side) => brokenBy(configuration, side).length === 0);
}

/** What may have to be there for a pair to be legal. */
const CONTEXTS: readonly Configuration[] = VALUES.compression.flatMap((compression) =>
  VALUES.xbzrle.flatMap((xbzrle) =>
    VALUES.autoConverge.flatMap((autoConverge) =>
      VALUES.channels.flatMap((channels) =>
        (["never", "after-rounds"] as const).map((postcopy) => {
          const context = { compression, xbzrle, autoConverge, channels, postcopy };
          return Object.entries(context).map(([name, value]) => ({
            name: name as keyof typeof context,
            value,
          }));
        }),
      ),
    ),
  ),
);

/** The pair and, for what it says nothing of, the context. */
function within(context: Configuration, pair: Configuration): Configuration {
  const others = context.filter(({ name }) => pair.every((setting) => setting.name !== name));
  return [...pair, ...others];
}

/** The pair alone and in every context. */
function waysOf(pair: Configuration): Configuration[] {
  return [pair, ...CONTEXTS.map((context) => within(context, pair))];
}

function canBeLegal(pair: Configuration): boolean {
  return waysOf(pair).some(isLegal);
}

function keyOf(one: Setting, other: Setting): string {
  return [one, other]
    .map((setting) => textOf([setting]))
    .sort()
    .join(" & ");
}

function pairsIn(configuration: Configuration): string[] {
  return configuration.flatMap((one, index) =>
    configuration.slice(index + 1).map((other) => keyOf(one, other)),
  );
}

/** Growing is random, and cheap beside a migration. */
const TRIES = 3;

/** Few configurations, all legal, in which every pair is that can be legal at all. */
function coveringConfigurations(): Configuration[] {
  const left = new Set(PAIRS.filter(canBeLegal).map((pair) => keyOf(...pair)));
  const made: Configuration[] = [];
  for (const pair of PAIRS) {
    if (!left.has(keyOf(...pair))) continue;
    const ways = waysOf(pair).filter(isLegal).slice(0, 4);
    const tries = Array<Configuration[]>(TRIES).fill(ways).flat();
    const grown = tries.map((way) => grow(way, left));
    const best = grown.reduce((most, each) => (gain(each, left) > gain(most, left) ? each : most));
    for (const key of pairsIn(best)) left.delete(key);
    made.push(best);
  }
  return made;
}

function gain(configuration: Configuration, left: ReadonlySet<string>): number {
  return pairsIn(configuration).filter((key) => left.has(key)).length;
}

/** Adds to a configuration, for one thing after the other, what brings the most pairs that are left. */
function grow(start: Configuration, left: ReadonlySet<string>): Configuration {
  let configuration = start;
  const names = [...new Set(SETTINGS.map(({ name }) => name))];
  for (; names.length > 0; ) {
    const [name] = names.splice(random.below(names.length), 1);
    if (configuration.some((setting) => setting.name === name)) continue;
    const choices = SETTINGS.filter((setting) => setting.name === name)
      .map((setting) => [...configuration, setting])
      .filter(isLegal)
      .map((each) => ({ each, gain: gain(each, left) }))
      .sort((one, other) => other.gain - one.gain);
    configuration = choices[0]?.each ?? configuration;
  }
  return configuration;
}

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

async function endsHere(configuration: Configuration): Promise<Ends> {
  const terms = termsOf(configuration);
  const { listen, reach } = route(configuration);
  const listening = Promise.withResolvers<string>();
  const arriving = moveIn(listen, terms, listening.resolve);
  arriving.catch(listening.reject);
  const source = await moveOut(reach(await listening.promise), terms);
  return { source, destination: await arriving };
}

const PROGRAM = fileURLToPath(new URL("fixtures/legal-ends.ts", import.meta.url));

/** Descriptors are inherited by processes. */
async function endsInProcesses(configuration: Configuration): Promise<Ends> {
  const count = descriptorsOf(configuration);
  const argv = [descriptorAddress(count), JSON.stringify(termsOf(configuration))];
  const { source, destination } = startConnected(count, {
    source: [PROGRAM, "out", ...argv],
    destination: [PROGRAM, "in", ...argv],
  });
  const [left, arrived] = await Promise.all([outputOf(source), outputOf(destination)]);
  return { source: received(left), destination: received(arrived) };
}

async function migrated(configuration: Configuration): Promise<Report> {
  const isInherited = addressOf(configuration) === "fd";
  const { source, destination } = await (isInherited ? endsInProcesses : endsHere)(configuration);
  expect(difference(source.blocks, destination.blocks)).toBeNull();
  expect([source.running, destination.running]).toEqual([false, true]);
  expect(source.calls).toContain("pause");
  expect(source.calls).not.toContain("resume");
  expect(destination.report.pages.raw).toBe(source.report.pages.raw);
  return source.report;
}

/**
 * Whether pages that the guest writes again have a version: a single channel's, for another one that
 * goes on with a chunk has none, in a cache that holds all of them.
 */
function knowsWrites(configuration: Configuration): boolean {
  const { channels, xbzrleCacheBytes } = parametersOf(configuration);
  const hasRoom = xbzrleCacheBytes >= GUEST_BYTES;
  return channels === 1 && hasRoom && termsOf(configuration).dirtyLog !== "none";
}

const CONFIGURATIONS = coveringConfigurations();

for (const [index, configuration] of CONFIGURATIONS.entries()) {
  test(`a guest moves, legal configuration ${index + 1} (SEED=${seed})`, async () => {
    const { pages, rounds, channels } = await migrated(configuration).catch((error: unknown) => {
      throw new Error(textOf(configuration), { cause: error });
    });
    const bulk = channels.filter(({ lane }) => lane === "bulk");
    expect(bulk).toHaveLength(parametersOf(configuration).channels);
    const described = pages.zero + pages.unchanged + pages.delta + pages.compressed + pages.raw;
    const sentPages = rounds.reduce((sum, round) => sum + round.sentPages, 0);
    expect(described).toBe(sentPages);
    if (termsOf(configuration).dirtyLog === "none") expect(sentPages).toBe(GUEST_PAGES);
    else expect(sentPages).toBeGreaterThan(GUEST_PAGES);
    const compression = settingOf(configuration, "compression") ?? "none";
    if (compression === "none") expect(pages.compressed).toBe(0);
    // With `auto` it depends on the link; the first round always has something that shrinks.
    if (["zstd", "deflate"].includes(String(compression))) {
      expect(pages.compressed).toBeGreaterThan(0);
    }
    const hasDeltas = settingOf(configuration, "xbzrle") === true || compression === "auto";
    if (!hasDeltas) expect(pages.delta + pages.unchanged).toBe(0);
    if (hasDeltas && knowsWrites(configuration)) expect(pages.delta).toBeGreaterThan(0);
  });
}

test("every pair is in a configuration that migrates, or breaks a rule in all of them", () => {
  const covered = new Set(CONFIGURATIONS.flatMap(pairsIn));
  const wrong = PAIRS.filter((pair) => covered.has(keyOf(...pair)) !== canBeLegal(pair));
  expect(wrong.map(textOf)).toEqual([]);
  // Two settings that exclude each other are rare, where not all that goes there is illegal.
  const reachable = PAIRS.filter((pair) => !["file", "fd, one short"].includes(addressOf(pair)));
  expect(covered.size).toBeGreaterThan(reachable.length * 0.95);
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
  for (const features of PAIRS.flatMap((pair) => SIDES.map((side) => featuresOf(pair, side)))) {
    for (const [name, value] of Object.entries(features)) {
      tried.set(name, (tried.get(name) ?? new Set()).add(value));
    }
  }
  expect([...tried.keys()].sort()).toEqual(Object.keys(FEATURES).sort());
  for (const [name, values] of tried) {
    // A guest that moves is live, and has only this value.
    expect(values.size, name).toBeGreaterThanOrEqual(name === "migration" ? 1 : 2);
  }
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
async function problemsOf(configuration: Configuration, side: Side): Promise<readonly string[]> {
  const target = targetOf(configuration);
  // Cancelled before it begins: so it is judged, and no more.
  const options = { ...optionsOf(configuration), signal: AbortSignal.abort() };
  const source = new RecordingSource({ ...termsOf(configuration), shape: ONE_PAGE });
  const destination = new RecordingDestination();
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

const REASONS = new Map<string, string>(LEGALITY.map(({ id, reason }) => [id, reason]));

/** Holds what was said of a configuration against the rules that it breaks, which are returned. */
function expectReasons(
  configuration: Configuration,
  side: Side,
  problems: readonly string[],
): readonly string[] {
  const rules = brokenBy(configuration, side).map(({ rule }) => rule);
  const text = `${textOf(configuration)} at the ${side}`;
  expect(problems, text).toHaveLength(rules.length);
  for (const [index, rule] of rules.entries()) {
    const reason = must(REASONS.get(rule), "every rule has a reason").slice(0, -1);
    expect(problems[index]?.toLowerCase(), text).toContain(reason.toLowerCase());
  }
  return rules;
}

/** Rules about more than two settings, or about values with which no guest would move. */
const BESIDE: Readonly<Record<string, ParameterOptions & { address?: "fd" }>> = {
  "timeout-exceeds-downtime": { downtimeLimitMs: 1001, timeoutMs: 1000 },
  "throttle-in-order": { autoConverge: true, throttleInitialPercent: 51, throttleMaxPercent: 50 },
  "postcopy-leaves-room-for-priority": { channels: 61, postcopy: "manual" },
  "fd-has-one-priority-channel": { address: "fd", postcopy: "manual", priorityChannels: 2 },
};

function configurationOf(settings: object): Configuration {
  return Object.entries(settings).map(([name, value]) => ({ name, value }) as Setting);
}

test("each end refuses every pair that is illegal there, with the reason of each rule that it breaks, and no other pair", async () => {
  const refusedBy = new Set<string>();
  for (const pair of PAIRS.filter((each) => addressOf(each) !== "file")) {
    for (const side of SIDES) {
      const rules = expectReasons(pair, side, await problemsOf(pair, side));
      for (const rule of rules) refusedBy.add(rule);
    }
  }
  for (const [rule, settings] of Object.entries(BESIDE)) {
    const configuration = configurationOf(settings);
    for (const side of SIDES) {
      const problems = await problemsOf(configuration, side);
      expect(expectReasons(configuration, side, problems)).toEqual([rule]);
      refusedBy.add(rule);
    }
  }
  const expected = LEGALITY.map(({ id }) => id).filter((id) => id !== "file-is-not-live");
  expect([...refusedBy].sort()).toEqual(expected.sort());
});

test("a file, which is no address of the embedding interface, is refused by the commands", () => {
  for (const pair of PAIRS.filter((each) => addressOf(each) === "file")) {
    for (const side of SIDES) {
      const problems = brokenRules(optionsOf(pair), featuresOf(pair, side));
      const rules = expectReasons(
        pair,
        side,
        problems.map(({ message }) => message),
      );
      expect(rules).toContain("file-is-not-live");
    }
  }
});
