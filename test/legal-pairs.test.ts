import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { MigrationError } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";
import { brokenRules } from "../cli/legality.ts";
import { migrateIn } from "../engine/destination.ts";
import { type Features, LEGALITY, legalityProblems } from "../engine/legality.ts";
import {
  PARAMETER_KEYS,
  type ParameterKey,
  type ParameterOptions,
  type Parameters,
  resolveParameters,
} from "../engine/parameters.ts";
import { migrateOut } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { difference } from "./harness/guest-memory.ts";
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
  priorityChannels: [2],
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

/** What is no parameter: where the guest goes, and what its host can do. */
const SURROUNDINGS = {
  address: ["tcp", "unix", "exec", "fd", "file"],
  throttle: [true, false],
  dirtyLog: ["bitmap", "scan"],
} as const;

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

function dirtyLogOf(configuration: Configuration): "bitmap" | "scan" {
  return settingOf(configuration, "dirtyLog") === "scan" ? "scan" : "bitmap";
}

/** Two descriptors, enough for one channel. */
const FD_ADDRESS = "fd:3,4";

function featuresOf(configuration: Configuration): Features {
  const address = (settingOf(configuration, "address") ?? "tcp") as "tcp";
  const throttle = settingOf(configuration, "throttle") !== false;
  const descriptors = (address as string) === "fd" ? { descriptors: 2 } : {};
  const dirtyLog = dirtyLogOf(configuration);
  return { side: "source", migration: "live", address, throttle, dirtyLog, ...descriptors };
}

/** The rules that a configuration breaks. */
function brokenBy(configuration: Configuration) {
  const options = optionsOf(configuration);
  return legalityProblems({
    parameters: { ...resolveParameters(), ...options },
    given: Object.keys(options),
    features: featuresOf(configuration),
  });
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

/** Ways to make a pair legal; none if no context does. */
function legalWays(pair: Configuration): Configuration[] {
  const ways = [pair, ...CONTEXTS.map((context) => within(context, pair))];
  return ways.filter((way) => brokenBy(way).length === 0);
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

/** An inherited descriptor is another process's matter; see the tests of addresses. */
const MIGRATED = PAIRS.filter((pair) => settingOf(pair, "address") !== "fd");

/** Few configurations, all legal, in which every pair is that can be legal at all. */
function coveringConfigurations(): Configuration[] {
  const left = new Set(
    MIGRATED.filter((pair) => legalWays(pair).length > 0).map((pair) => keyOf(...pair)),
  );
  const made: Configuration[] = [];
  for (const pair of MIGRATED) {
    if (!left.has(keyOf(...pair))) continue;
    const grown = legalWays(pair)
      .slice(0, 4)
      .map((way) => grow(way, left));
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
      .filter((each) => settingOf(each, "address") !== "fd" && brokenBy(each).length === 0)
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
  const address = settingOf(configuration, "address") ?? "tcp";
  if (address === "tcp") return { listen: "tcp:127.0.0.1:0", reach: (listening) => listening };
  sockets += 1;
  const path = join(folder, `${sockets}`);
  const bridge = `exec:exec '${process.execPath}' '${BRIDGE}' '${path}'`;
  const reach = (listening: string) => (address === "exec" ? bridge : listening);
  return { listen: `unix:${path}`, reach };
}

const SHAPE = [
  { name: "ram", sizeBytes: 1 * MIB + 12 * KIB, pageBytes: 4 * KIB },
  { name: "video", sizeBytes: 7 * 64 * KIB, pageBytes: 64 * KIB },
];

async function migrated(configuration: Configuration): Promise<Report> {
  const canThrottle = settingOf(configuration, "throttle") !== false;
  const dirtyLog = dirtyLogOf(configuration);
  const source = new RecordingSource({ seed, shape: SHAPE, canThrottle, dirtyLog });
  const destination = new RecordingDestination();
  let writes = 3;
  source.onLook = () => {
    if (writes > 0) source.writePages(40);
    writes -= 1;
  };
  source.onPause = () => source.writePages(10);
  const { listen, reach } = route(configuration);
  const options = optionsOf(configuration);
  const listening = Promise.withResolvers<string>();
  const arriving = migrateIn(destination, listen, {
    ...options,
    onListening: listening.resolve,
  });
  arriving.catch(listening.reject);
  const report = await migrateOut(source, reach(await listening.promise), options);
  const arrived = await arriving;
  expect(difference(source.blocks, destination.blocks ?? [])).toBeNull();
  expect([source.running, destination.running]).toEqual([false, true]);
  expect(arrived.pages.raw).toBe(report.pages.raw);
  return report;
}

const CONFIGURATIONS = coveringConfigurations();

for (const [index, configuration] of CONFIGURATIONS.entries()) {
  test(`a guest moves, legal configuration ${index + 1} (SEED=${seed})`, async () => {
    const { pages, rounds } = await migrated(configuration).catch((error: unknown) => {
      throw new Error(textOf(configuration), { cause: error });
    });
    const described = pages.zero + pages.unchanged + pages.delta + pages.compressed + pages.raw;
    expect(described).toBe(rounds.reduce((sum, round) => sum + round.sentPages, 0));
    const compression = settingOf(configuration, "compression") ?? "none";
    if (compression === "none") expect(pages.compressed).toBe(0);
    const hasDeltas = settingOf(configuration, "xbzrle") === true || compression === "auto";
    if (!hasDeltas) expect(pages.delta + pages.unchanged).toBe(0);
  });
}

test("every pair is in a configuration that migrates, or breaks a rule in all of them", () => {
  const covered = new Set(CONFIGURATIONS.flatMap(pairsIn));
  const missed = MIGRATED.filter((pair) => !covered.has(keyOf(...pair)));
  for (const pair of missed) expect(brokenBy(pair).length, textOf(pair)).toBeGreaterThan(0);
  for (const pair of MIGRATED) {
    if (brokenBy(pair).length === 0) expect(covered.has(keyOf(...pair)), textOf(pair)).toBe(true);
  }
  expect(covered.size).toBeGreaterThan(MIGRATED.length * 0.8);
  expect(CONFIGURATIONS.length).toBeLessThan(60);
});

/** What a source says of a configuration before it touches anything; nobody listens there. */
async function problemsOf(configuration: Configuration): Promise<readonly string[]> {
  const address = settingOf(configuration, "address") ?? "tcp";
  const options = optionsOf(configuration);
  // A file is no address of the embedding interface; the commands know what it is, and why not.
  if (address === "file") {
    return brokenRules(options, featuresOf(configuration)).map(({ message }) => message);
  }
  const reached = { tcp: "tcp:127.0.0.1:1", unix: "unix:/nowhere", exec: "exec:false" };
  const target = address === "fd" ? FD_ADDRESS : reached[address as "tcp"];
  const canThrottle = settingOf(configuration, "throttle") !== false;
  const dirtyLog = dirtyLogOf(configuration);
  const source = new RecordingSource({ seed, shape: SHAPE.slice(0, 1), canThrottle, dirtyLog });
  try {
    await migrateOut(source, target, options);
  } catch (error) {
    if (!(error instanceof MigrationError)) throw error;
    expect(source.calls).toEqual([]);
    expect(error.code, textOf(configuration)).toBe("CONFIGURATION_INVALID");
    return (error as MigrationError<"CONFIGURATION_INVALID">).facts.problems;
  }
  throw new Error(`${textOf(configuration)} was taken`);
}

test("every pair that is illegal by itself is refused, with the reason of each rule that it breaks", async () => {
  const reasons = new Map(LEGALITY.map(({ id, reason }) => [id, reason]));
  const refusedBy = new Set<string>();
  for (const pair of PAIRS) {
    const broken = brokenBy(pair);
    if (broken.length === 0) continue;
    const problems = await problemsOf(pair);
    expect(problems.length, textOf(pair)).toBe(broken.length);
    for (const { rule } of broken) {
      refusedBy.add(rule);
      const reason = must(reasons.get(rule), "every rule has a reason").slice(0, -1);
      expect(problems.join("\n").toLowerCase()).toContain(reason.toLowerCase());
    }
  }
  // These take more than two settings, another end, or more channels than are tried here.
  const others = [
    "timeout-exceeds-downtime",
    "throttle-in-order",
    "fd-names-a-bulk-channel",
    "fd-has-one-priority-channel",
    "postcopy-leaves-room-for-priority",
  ];
  const expected = LEGALITY.map(({ id }) => id).filter((id) => !others.includes(id));
  expect([...refusedBy].sort()).toEqual(expected.sort());
});
