import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { contains } from "../engine/domain.ts";
import {
  agreedParameters,
  changeParameters,
  flagOf,
  PARAMETER_KEYS,
  PARAMETERS,
  type ParameterKey,
  type ParameterOptions,
  parameterProblems,
  resolveParameters,
  rowOf,
} from "../engine/parameters.ts";

function problemsOf(work: () => unknown): readonly string[] {
  try {
    work();
  } catch (error) {
    expect(error).toBeInstanceOf(MigrationError);
    const failure = error as MigrationError<"CONFIGURATION_INVALID">;
    expect(failure.code).toBe("CONFIGURATION_INVALID");
    return failure.facts.problems;
  }
  return [];
}

/** Values at and beyond the bounds of a row, and whether each is one of its own. */
function tries(key: ParameterKey): [value: unknown, isAllowed: boolean][] {
  const row = rowOf(key);
  const others = [null, {}, [], Number.NaN, Number.POSITIVE_INFINITY, "", "7", 7n, -1];
  const strangers = others.map((value): [unknown, boolean] => [value, false]);
  if (row.type === "boolean")
    return [[true, true], [false, true], ...strangers, [0, false], [1, false], ["true", false]];
  if (row.type === "choice") {
    const choices = row.choices.map((choice): [unknown, boolean] => [choice, true]);
    return [...choices, ...strangers, [row.choices[0]?.toUpperCase(), false], [true, false]];
  }
  const isWhole = !["milliseconds", "bytesPerSecond", "cores"].includes(row.type);
  return [
    [row.default, true],
    [row.min, true],
    [row.max, true],
    [row.min - 1, row.min - 1 === 0 && row.zero !== undefined],
    [row.max + 1, false],
    [0, row.min === 0 || row.zero !== undefined],
    [row.min + 0.5, !isWhole],
    [row.min + 1, row.powerOfTwo !== true],
    [true, false],
    ...strangers,
  ];
}

for (const key of PARAMETER_KEYS) {
  test(`${key} takes its bounds and nothing beyond them`, () => {
    for (const [value, isAllowed] of tries(key)) {
      const problems = parameterProblems({ [key]: value });
      expect(problems, String(value)).toHaveLength(isAllowed ? 0 : 1);
      if (!isAllowed) expect(problems[0]).toContain(`"${key}" must be `);
    }
  });
}

test("every row can be explained and has a default that it would accept", () => {
  for (const key of PARAMETER_KEYS) {
    const row = rowOf(key);
    expect(contains(row, row.default), key).toBe(true);
    for (const sentence of [row.meaning, row.why]) expect(sentence).toMatch(/^[A-Z].+\.$/);
    if (row.type === "milliseconds") expect(row.max).toBeLessThan(2 ** 31); // Node's timers end there.
  }
});

test("defaults are what is not given, also when it is given as undefined", () => {
  const defaults = Object.fromEntries(PARAMETER_KEYS.map((key) => [key, PARAMETERS[key].default]));
  expect(resolveParameters()).toEqual(defaults);
  expect(resolveParameters({ channels: undefined })).toEqual(defaults);
  expect(resolveParameters({ channels: 2 })).toEqual({ ...defaults, channels: 2 });
});

test("resolved parameters cannot be changed", () => {
  expect(Object.isFrozen(resolveParameters())).toBe(true);
  expect(Object.isFrozen(changeParameters(resolveParameters(), { timeoutMs: 5000 }))).toBe(true);
});

test("all problems of a configuration are reported at once", () => {
  const problems = problemsOf(() =>
    resolveParameters({
      channels: 0,
      chunkBytes: 3 * 2 ** 20,
      checksum: "yes",
      nonConvergence: "wait",
      maxbandwidth: 5,
      timeoutMs: 100,
      downtimeLimitMs: 500,
    }),
  );
  expect(problems).toEqual([
    '"channels" must be a whole number from 1 to 64: it is 0',
    '"chunkBytes" must be a whole number of bytes that is a power of two from 131072 to 1073741824: it is 3145728',
    '"checksum" must be true or false: it is "yes"',
    '"nonConvergence" must be "cancel" or "switch-over": it is "wait"',
    '"maxbandwidth" is not a parameter (did you mean "maxBandwidthBytesPerSecond"?)',
    'where "downtimeLimitMs" is given, "timeoutMs" must be at least "downtimeLimitMs": it is 100 and "downtimeLimitMs" is 500 (a pause longer than all the time before it is a mistake of units)',
  ]);
});

test("an unknown name is met with the nearest known one, if there is one", () => {
  const hints = {
    chanels: "channels",
    downtimeLimit: "downtimeLimitMs",
    "max-rounds": "maxRounds",
    bandwidth: "maxBandwidthBytesPerSecond",
    CHECKSUM: "checksum",
    quux: undefined,
  };
  for (const [name, meant] of Object.entries(hints)) {
    const hint = meant === undefined ? "" : ` (did you mean "${meant}"?)`;
    expect(parameterProblems({ [name]: 1 })).toEqual([`"${name}" is not a parameter${hint}`]);
  }
});

test("a message says what was found, whatever it is", () => {
  const found = { NaN: Number.NaN, "-1": -1, '"4"': "4", null: null, "of type object": {} };
  for (const [text, value] of Object.entries(found))
    expect(parameterProblems({ channels: value })[0]).toMatch(new RegExp(`: it is ${text}$`));
});

test("names that every object has are not parameters", () => {
  for (const name of ["__proto__", "constructor", "toString", "hasOwnProperty"]) {
    const given = JSON.parse(`{"${name}": 1}`) as Record<string, unknown>;
    expect(parameterProblems(given)).toEqual([`"${name}" is not a parameter`]);
  }
});

test("flags are the keys without their units, and are never renamed", () => {
  expect(PARAMETER_KEYS.map(flagOf)).toEqual([
    "channels",
    "chunk-size",
    "checksum",
    "downtime-limit",
    "max-bandwidth",
    "max-rounds",
    "timeout",
    "non-convergence",
    "postcopy",
    "postcopy-rounds",
    "priority-channels",
    "auto-converge",
    "throttle-initial",
    "throttle-increment",
    "throttle-max",
    "compression",
    "zstd-level",
    "deflate-level",
    "cpu-limit",
    "auto-extra-time",
    "xbzrle",
    "xbzrle-cache-size",
    "connect-timeout",
    "reconnect-timeout",
    "recover-timeout",
    "channel-timeout",
    "step-timeout",
    "accept-timeout",
    "device-limit",
  ]);
});

test("the handshake compares the agreed parameters, as plain numbers in order", () => {
  expect(agreedParameters(resolveParameters({ checksum: true }))).toEqual([
    { name: "chunk-size", value: "2097152" },
    { name: "checksum", value: "true" },
  ]);
});

test("only live parameters change while a migration runs", () => {
  /** What must hold already for a change to be legal. */
  const needs: { readonly [key in ParameterKey]?: ParameterOptions } = {
    zstdLevel: { compression: "zstd" },
    deflateLevel: { compression: "deflate" },
    cpuLimitCores: { compression: "auto" },
    autoExtraTimePercent: { compression: "auto" },
  };
  for (const key of PARAMETER_KEYS) {
    const current = resolveParameters({ channels: 2, ...needs[key] });
    const row = rowOf(key);
    const isNumber = row.type !== "boolean" && row.type !== "choice";
    const value = isNumber ? row.max : row.type === "choice" ? row.choices.at(-1) : true;
    const wanted = value === current[key] && isNumber ? row.min : value;
    const problems = problemsOf(() => changeParameters(current, { [key]: wanted }));
    const refusal = `"${key}" cannot change while a migration runs`;
    expect(problems.includes(refusal), key).toBe(!row.live);
    if (row.live) expect(problems).toEqual([]);
  }
});

test("a live change keeps the rest, and a refused one changes nothing", () => {
  const current = resolveParameters({ channels: 2 });
  const changed = changeParameters(current, { channels: 2, downtimeLimitMs: 50 });
  expect(changed).toEqual({ ...current, downtimeLimitMs: 50 });
  expect(current.downtimeLimitMs).toBe(300);
  const patch = { channels: 3, downtimeLimitMs: 0, timeout: 1 };
  expect(problemsOf(() => changeParameters(current, patch))).toEqual([
    '"channels" cannot change while a migration runs',
    '"downtimeLimitMs" must be a number of milliseconds from 1 to 2000000: it is 0',
    '"timeout" is not a parameter (did you mean "timeoutMs"?)',
  ]);
  expect(current).toEqual(resolveParameters({ channels: 2 }));
});

test("a live change must suit what holds already", () => {
  const current = resolveParameters({ timeoutMs: 1000 });
  expect(changeParameters(current, { downtimeLimitMs: 1000 }).downtimeLimitMs).toBe(1000);
  const problems = problemsOf(() => changeParameters(current, { downtimeLimitMs: 1001 }));
  expect(problems.join()).toContain('"timeoutMs" must be at least "downtimeLimitMs"');
});
