import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { flagsOf, parseFlags } from "../cli/flags.ts";
import { brokenRules, LEGALITY_CHECK } from "../cli/legality.ts";
import { type Features, LEGALITY } from "../engine/legality.ts";
import {
  configurationProblems,
  PARAMETER_KEYS,
  type ParameterOptions,
  rowOf,
} from "../engine/parameters.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const PROGRAM = fileURLToPath(new URL("../cli/multifd.js", import.meta.url));

function check(...args: readonly string[]) {
  const argv = [PROGRAM, "legality", "--check", ...args];
  const { status, stdout, stderr } = spawnSync(process.execPath, argv, { encoding: "utf8" });
  return { status, stdout, stderr };
}

test("a legal configuration is said to be so, with exit status 0", () => {
  const flags = ["tcp:host:4444", "--compression=zstd", "--zstd-level=3", "--xbzrle"];
  expect(check(...flags)).toEqual({ status: 0, stdout: "legal\n", stderr: "" });
  const json = check(...flags, "--json");
  expect([json.status, json.stderr]).toEqual([0, ""]);
  expect(JSON.parse(json.stdout)).toEqual({ legal: true, problems: [] });
});

test("people get a line for every rule that is broken, with its reason, and exit status 1", () => {
  const { status, stdout, stderr } = check("--zstd-level=3", "--cpu-limit=2", "--xbzrle");
  expect([status, stderr]).toEqual([1, ""]);
  expect(stdout.split("\n")).toEqual([
    expect.stringMatching(/^zstd-level-needs-zstd: where --zstd-level is given, .* \(the level is/),
    expect.stringMatching(/^cpu-limit-needs-auto: .*--compression must be auto: it is none/),
    "",
  ]);
});

test("managers get every broken rule by its id, in one JSON object, and exit status 1", () => {
  const { status, stdout, stderr } = check("fd:3,4", "--channels=3", "--zstd-level=2", "--json");
  expect([status, stderr]).toEqual([1, ""]);
  const { legal, problems } = JSON.parse(stdout);
  expect(legal).toBe(false);
  const rules = ["zstd-level-needs-zstd", "fd-names-every-channel"];
  expect(problems).toEqual(
    rules.map((rule) => ({
      rule,
      message: expect.stringContaining("must be"),
      reason: LEGALITY.find(({ id }) => id === rule)?.reason,
    })),
  );
});

test("nonsense is no configuration: it is told as everywhere, with exit status 2", () => {
  const nonsense = ["nowhere", "--channels=0", "--zstd-level=3", "--chanels=4"];
  const { status, stdout, stderr } = check(...nonsense);
  expect([status, stdout]).toEqual([2, ""]);
  expect(stderr).toContain('address "nowhere" must be');
  expect(stderr).toContain("--channels must be a whole number from 1 to 64");
  expect(stderr).toContain('--chanels is not a flag of "legality" (did you mean "--channels"?)');
  expect(stderr).not.toContain("zstd");
  const json = check(...nonsense, "--json");
  expect(json.status).toBe(2);
  const { event, failure } = JSON.parse(json.stdout);
  expect([event, failure.code]).toEqual(["failed", "CONFIGURATION_INVALID"]);
  expect(failure.facts.problems).toHaveLength(3);
});

test("without a check the rules are told, and parameters are not asked for", () => {
  const argv = [PROGRAM, "legality", "--side=source"];
  const { status, stderr } = spawnSync(process.execPath, argv, { encoding: "utf8" });
  expect(status).toBe(2);
  expect(stderr).toContain('--side is not a flag of "legality"');
});

/** What the flags of a check say, judged in this process. */
function judged(...args: readonly string[]): string[] {
  const { options, flags, positionals, mistakes } = parseFlags(LEGALITY_CHECK, args);
  expect([positionals, mistakes]).toEqual([[], []]);
  const { side, throttle } = flags;
  const features = { side, migration: "live", ...(throttle === undefined ? {} : { throttle }) };
  return brokenRules(options, features as Features).map(({ rule }) => rule);
}

test("what the host can do is asked only where it is said", () => {
  expect(judged("--auto-converge")).toEqual([]);
  expect(judged("--auto-converge", "--throttle")).toEqual([]);
  expect(judged("--auto-converge", "--no-throttle")).toEqual(["auto-converge-needs-throttle"]);
});

test(`a check comes to the verdict that a migration would come to (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const pick = <T>(values: readonly T[]): T | undefined => values[random.below(values.length)];
  let broken = 0;
  for (let run = 0; run < 500; run += 1) {
    const options: Record<string, unknown> = {};
    for (const key of PARAMETER_KEYS) {
      const row = rowOf(key);
      if (random.below(3) > 0) continue;
      if (row.type === "boolean") options[key] = random.below(2) === 0;
      else if (row.type === "choice") options[key] = pick(row.choices);
      else options[key] = pick([row.min, row.max, row.default]);
    }
    const given = options as ParameterOptions;
    const features = { side: "source", migration: "live", throttle: false } as const;
    const rules = judged(...flagsOf(given), "--no-throttle");
    expect(rules).toHaveLength(configurationProblems(options, features).length);
    broken += rules.length;
  }
  expect(broken).toBeGreaterThan(100);
});

test("a broken rule has all that the table says", () => {
  const [problem] = brokenRules({ deflateLevel: 3 }, {});
  expect(problem).toEqual({
    rule: "deflate-level-needs-deflate",
    message: expect.stringContaining("--compression must be deflate: it is none"),
    reason: "The level is deflate's, which nothing else uses.",
  });
});
