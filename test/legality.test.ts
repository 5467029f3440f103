import { expect, test } from "vitest";
import { FEATURES, type Features } from "../engine/features.ts";
import {
  brokenOf,
  type Condition,
  type Configuration,
  LEGALITY,
  legalityProblems,
  undecidedOf,
} from "../engine/legality.ts";
import {
  PARAMETER_KEYS,
  PARAMETERS,
  type ParameterOptions,
  type Parameters,
  resolveParameters,
  rowOf,
} from "../engine/parameters.ts";
import { AS_OPTIONS } from "../engine/wording.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

type Case = readonly [options: ParameterOptions, features?: Features];

const SOURCE: Features = { side: "source", migration: "live" };
const DESTINATION: Features = { side: "destination", migration: "live" };

/** For each rule a configuration that breaks it and nothing else, and one that just does not. */
const CASES: Readonly<Record<string, { breaks: Case; keeps: Case }>> = {
  "timeout-exceeds-downtime": {
    breaks: [{ downtimeLimitMs: 501, timeoutMs: 500 }],
    keeps: [{ downtimeLimitMs: 500, timeoutMs: 500 }],
  },
  "throttle-in-order": {
    breaks: [{ autoConverge: true, throttleInitialPercent: 51, throttleMaxPercent: 50 }],
    keeps: [{ autoConverge: true, throttleInitialPercent: 50, throttleMaxPercent: 50 }],
  },
  "throttle-initial-needs-auto-converge": {
    breaks: [{ throttleInitialPercent: 20 }],
    keeps: [{ throttleInitialPercent: 20, autoConverge: true }],
  },
  "throttle-increment-needs-auto-converge": {
    breaks: [{ throttleIncrementPercent: 5 }],
    keeps: [{ throttleIncrementPercent: 5, autoConverge: true }],
  },
  "throttle-max-needs-auto-converge": {
    breaks: [{ throttleMaxPercent: 80, autoConverge: false }],
    keeps: [{ throttleMaxPercent: 80, autoConverge: true }],
  },
  "auto-converge-needs-rounds": {
    breaks: [{ autoConverge: true, maxRounds: 2 }],
    keeps: [{ autoConverge: true, maxRounds: 3 }],
  },
  "auto-converge-needs-throttle": {
    breaks: [{ autoConverge: true }, { ...SOURCE, address: "tcp", throttle: false }],
    keeps: [{ autoConverge: true }, { ...SOURCE, address: "tcp", throttle: true }],
  },
  "scan-needs-rounds": {
    breaks: [{ maxRounds: 1 }, { ...SOURCE, dirtyLog: "scan" }],
    keeps: [{ maxRounds: 2 }, { ...SOURCE, dirtyLog: "scan" }],
  },
  "postcopy-rounds-need-after-rounds": {
    breaks: [{ postcopyRounds: 2, postcopy: "manual" }],
    keeps: [{ postcopyRounds: 2, postcopy: "after-rounds" }],
  },
  "postcopy-rounds-are-rounds": {
    breaks: [{ postcopy: "after-rounds", postcopyRounds: 3, maxRounds: 2 }],
    keeps: [{ postcopy: "after-rounds", postcopyRounds: 3, maxRounds: 3 }],
  },
  "priority-channels-need-postcopy": {
    breaks: [{ priorityChannels: 2 }],
    keeps: [{ priorityChannels: 2, postcopy: "manual" }],
  },
  "postcopy-needs-faults": {
    breaks: [{ postcopy: "manual" }, { ...DESTINATION, faults: false }],
    keeps: [{ postcopy: "manual" }, { ...DESTINATION, faults: true }],
  },
  "postcopy-leaves-room-for-priority": {
    breaks: [{ channels: 61, postcopy: "manual" }],
    keeps: [{ channels: 60, postcopy: "manual" }],
  },
  "scan-excludes-postcopy": {
    breaks: [{ postcopy: "manual" }, { ...SOURCE, dirtyLog: "scan" }],
    keeps: [{ postcopy: "never" }, { ...SOURCE, dirtyLog: "scan" }],
  },
  "postcopy-needs-its-descriptors": {
    breaks: [
      { channels: 2, postcopy: "manual" },
      { ...SOURCE, address: "fd", descriptors: 3 },
    ],
    keeps: [
      { channels: 2, postcopy: "manual" },
      { ...SOURCE, address: "fd", descriptors: 4 },
    ],
  },
  "fd-has-one-priority-channel": {
    breaks: [
      { channels: 2, postcopy: "manual", priorityChannels: 2 },
      { ...SOURCE, address: "fd", descriptors: 5 },
    ],
    keeps: [
      { channels: 2, postcopy: "manual", priorityChannels: 1 },
      { ...SOURCE, address: "fd", descriptors: 4 },
    ],
  },
  "zstd-level-needs-zstd": {
    breaks: [{ zstdLevel: 3, compression: "deflate" }],
    keeps: [{ zstdLevel: 3, compression: "auto" }],
  },
  "deflate-level-needs-deflate": {
    breaks: [{ deflateLevel: 3, compression: "auto" }],
    keeps: [{ deflateLevel: 3, compression: "deflate" }],
  },
  "cpu-limit-needs-auto": {
    breaks: [{ cpuLimitCores: 1, compression: "zstd" }],
    keeps: [{ cpuLimitCores: 1, compression: "auto" }],
  },
  "extra-time-needs-auto": {
    breaks: [{ autoExtraTimePercent: 50, compression: "zstd" }],
    keeps: [{ autoExtraTimePercent: 50, compression: "auto" }],
  },
  "cache-size-needs-xbzrle": {
    breaks: [{ xbzrleCacheBytes: 65_536, compression: "zstd" }],
    keeps: [{ xbzrleCacheBytes: 65_536, compression: "auto" }],
  },
  "fd-names-every-channel": {
    breaks: [{ channels: 3 }, { ...SOURCE, address: "fd", descriptors: 3 }],
    keeps: [{ channels: 3 }, { ...SOURCE, address: "fd", descriptors: 4 }],
  },
  "fd-names-a-bulk-channel": {
    breaks: [{}, { ...DESTINATION, address: "fd", descriptors: 1 }],
    keeps: [{}, { ...DESTINATION, address: "fd", descriptors: 2 }],
  },
  "file-is-not-live": {
    breaks: [{}, { ...SOURCE, address: "file" }],
    keeps: [{}, { ...SOURCE, address: "exec" }],
  },
};

function judged([options, features = {}]: Case) {
  const defaults = Object.fromEntries(PARAMETER_KEYS.map((key) => [key, PARAMETERS[key].default]));
  const parameters = { ...defaults, ...options } as Parameters;
  return { parameters, given: Object.keys(options), features };
}

test("every rule has its case, and every case its rule", () => {
  expect(Object.keys(CASES)).toEqual(LEGALITY.map(({ id }) => id));
});

for (const [rule, { breaks, keeps }] of Object.entries(CASES)) {
  test(`${rule} is broken alone, with its reason, and can be kept`, () => {
    const problems = legalityProblems(judged(breaks));
    expect(problems.map((problem) => problem.rule)).toEqual([rule]);
    const reason = LEGALITY.find(({ id }) => id === rule)?.reason ?? "";
    expect(problems[0]?.message.toLowerCase()).toContain(reason.slice(0, -1).toLowerCase());
    expect(problems[0]?.message).not.toMatch(/undefined|unknown/);
    expect(() => resolveParameters(...breaks)).toThrow(problems[0]?.message);

    expect(legalityProblems(judged(keeps))).toEqual([]);
    expect(() => resolveParameters(...keeps)).not.toThrow();
  });
}

test("a rule about a feature that nobody told of is not asked", () => {
  expect(legalityProblems(judged([{ autoConverge: true }, { address: "fd" }]))).toEqual([]);
});

test("reasons are sentences", () => {
  for (const { reason } of LEGALITY) expect(reason).toMatch(/^[A-Z][a-z]* .+\.$/);
});

/** The same judgement by the text of the reference alone, as a manager would make it from JSON. */
function isBrokenByTheBook(
  rule: { kind: string; when: unknown; claim: unknown },
  configuration: ReturnType<typeof judged>,
): boolean {
  type Plain = Readonly<Record<string, unknown>>;
  const { parameters, given, features } = configuration;
  const names: Plain = { ...parameters, ...features };
  const read = (plain: Plain) => names[String(plain["parameter"] ?? plain["feature"])];
  const bound = (plain: unknown) =>
    typeof plain === "number"
      ? plain
      : Number(read(plain as Plain)) + Number((plain as Plain)["plus"] ?? 0);
  const isKnown = (plain: Plain): boolean =>
    "all" in plain
      ? (plain["all"] as Plain[]).every(isKnown)
      : "given" in plain || read(plain) !== undefined;
  const holds = (plain: Plain): boolean => {
    if ("all" in plain) return (plain["all"] as Plain[]).every(holds);
    if ("given" in plain) return given.includes(String(plain["given"]));
    if ("is" in plain) return read(plain) === plain["is"];
    if ("oneOf" in plain) return (plain["oneOf"] as unknown[]).includes(read(plain));
    if ("atLeast" in plain) return Number(read(plain)) >= bound(plain["atLeast"]);
    return Number(read(plain)) <= bound(plain["atMost"]);
  };
  const [when, claim] = [rule.when as Plain, rule.claim as Plain];
  if (!isKnown(when) || !isKnown(claim)) return false;
  return holds(when) && holds(claim) === (rule.kind === "excludes");
}

const seed = seedFromEnvironment();

/** About half of the parameters, each with a value that is right by itself. */
function anyOptions(random: Prng): ParameterOptions {
  const options: Record<string, unknown> = {};
  for (const key of PARAMETER_KEYS) {
    const row = rowOf(key);
    if (random.below(2) === 0) continue;
    const values =
      row.type === "boolean"
        ? [false, true]
        : row.type === "choice"
          ? row.choices
          : [row.min, row.max, row.default, row.min + 1];
    options[key] = values[random.below(values.length)];
  }
  return options as ParameterOptions;
}

test(`a manager who evaluates the JSON comes to the same verdicts (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const below = (limit: number) => random.below(limit);
  const pick = <T>(choices: readonly T[]): T | undefined => choices[below(choices.length)];
  const rules = JSON.parse(JSON.stringify(LEGALITY)) as {
    id: string;
    kind: string;
    when: Condition;
    claim: Condition;
  }[];
  let broken = 0;
  for (let run = 0; run < 2000; run += 1) {
    const options = anyOptions(random);
    const features = {
      ...(below(2) === 0 ? { side: pick(["source", "destination"] as const) } : {}),
      ...(below(2) === 0 ? { address: pick(["tcp", "fd", "file"] as const) } : {}),
      ...(below(2) === 0 ? { descriptors: below(6) } : {}),
      ...(below(2) === 0 ? { migration: "live" } : {}),
      ...(below(2) === 0 ? { throttle: below(2) === 0 } : {}),
      ...(below(2) === 0 ? { faults: below(2) === 0 } : {}),
      ...(below(2) === 0 ? { dirtyLog: pick(["none", "bitmap", "scan"] as const) } : {}),
    } as Features;
    const configuration = judged([options, features]);
    const ours = legalityProblems(configuration).map(({ rule }) => rule);
    const theirs = rules
      .filter((rule) => isBrokenByTheBook(rule, configuration))
      .map(({ id }) => id);
    expect(ours).toEqual(theirs);
    broken += ours.length;
  }
  expect(broken).toBeGreaterThan(100);
});

/** Each feature with some value, all values that there are being likely. */
function anyFeatures(random: Prng): Configuration["features"] {
  return Object.fromEntries(
    Object.entries(FEATURES).map(([name, { values }]) => [
      name,
      values === "count" ? random.below(6) : values[random.below(values.length)],
    ]),
  );
}

test(`what is not decided hangs on just what it says, and what is decided on nothing (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const seen = { open: 0, closed: 0 };
  for (let run = 0; run < 1000; run += 1) {
    const whole = { ...judged([anyOptions(random)]), features: anyFeatures(random) };
    const known = Object.entries(whole.features).filter(() => random.below(2) === 0);
    const part = { ...whole, features: Object.fromEntries(known) };
    const brokenIn = (configuration: Configuration) =>
      brokenOf(LEGALITY, configuration, AS_OPTIONS).map(({ rule }) => rule);
    const open = undecidedOf(LEGALITY, part);
    const openIds = open.map(({ rule }) => rule);
    // Whatever else comes to be known changes only what was not decided.
    expect(brokenIn(whole).filter((rule) => !openIds.includes(rule))).toEqual(brokenIn(part));
    for (const { rule, needs } of open) {
      expect(needs.length).toBeGreaterThan(0);
      expect(needs.filter((name) => name in part.features)).toEqual([]);
      const told = Object.fromEntries(needs.map((name) => [name, whole.features[name]]));
      const more = { ...part, features: { ...part.features, ...told } };
      expect(undecidedOf(LEGALITY, more).map((each) => each.rule)).not.toContain(rule);
    }
    expect(undecidedOf(LEGALITY, whole)).toEqual([]);
    seen.open += open.length;
    seen.closed += LEGALITY.length - open.length;
  }
  expect(Math.min(seen.open, seen.closed)).toBeGreaterThan(500);
});
