import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { flagsOf, parseFlags } from "../cli/flags.ts";
import { FLAG_RULES, HOST_RULES } from "../cli/guest-rules.ts";
import { checkedFeatures, LEGALITY_CHECK } from "../cli/legality.ts";
import { RECEIVE } from "../cli/receive.ts";
import { type Judgement, judge } from "../cli/rules.ts";
import { SEND } from "../cli/send.ts";
import { LEGALITY } from "../engine/legality.ts";
import { PARAMETER_KEYS, type ParameterOptions, rowOf } from "../engine/parameters.ts";
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
  expect(JSON.parse(json.stdout)).toEqual({ legal: true, problems: [], undecided: [] });
});

test("people get a line for every rule that is broken, with its reason, and exit status 1", () => {
  const { status, stdout, stderr } = check(
    ...["tcp:host:4444", "--zstd-level=3", "--cpu-limit=2", "--xbzrle"],
  );
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

test("what cannot be decided is told with what needs to be known, and what is named is not opened", () => {
  const flags = ["tcp:host:4444", "--qemu=/nowhere/qmp", "--auto-converge", "--record=/nowhere/r"];
  const { status, stdout, stderr } = check(...flags, "--control=/nowhere/control");
  expect([status, stderr]).toEqual([0, ""]);
  expect(stdout.split("\n")).toEqual([
    "legal, as far as is known",
    "not decided, auto-converge-needs-throttle: where --auto-converge is true, throttle must be true; needs to be known: throttle (--throttle, --host)",
    "",
  ]);
  const json = check(...flags, "--json");
  expect([json.status, json.stderr]).toEqual([0, ""]);
  expect(JSON.parse(json.stdout)).toEqual({
    legal: null,
    problems: [],
    undecided: [
      {
        rule: "auto-converge-needs-throttle",
        message: "where --auto-converge is true, throttle must be true",
        reason: LEGALITY.find(({ id }) => id === "auto-converge-needs-throttle")?.reason,
        needs: ["throttle"],
      },
    ],
  });
});

test("the example for operators is what is said", () => {
  const page = readFileSync(new URL("../docs/operating.md", import.meta.url), "utf8");
  const example = /^\$ multifd legality --check (.+)\n([^`]+)```$/m.exec(page);
  const { status, stdout, stderr } = check(...(example?.[1] ?? "").split(" "));
  expect([status, stderr]).toEqual([1, ""]);
  expect(stdout).toBe(example?.[2]);
});

test("nonsense is no configuration: it is told as everywhere, with exit status 2", () => {
  const nonsense = ["nowhere", "--channels=0", "--zstd-level=3", "--chanels=4", "--memory=ram:/x"];
  const { status, stdout, stderr } = check(...nonsense);
  expect([status, stdout]).toEqual([2, ""]);
  expect(stderr).toContain('address "nowhere" must be');
  expect(stderr).toContain("--channels must be a whole number from 1 to 64");
  expect(stderr).toContain('--chanels is not a flag of "legality" (did you mean "--channels"?)');
  expect(stderr).toContain('--memory must be NAME=file:PATH: it is "ram:/x"');
  expect(stderr).not.toContain("zstd");
  const json = check(...nonsense, "--json");
  expect(json.status).toBe(2);
  const { event, failure } = JSON.parse(json.stdout);
  expect([event, failure.code]).toEqual(["failed", "CONFIGURATION_INVALID"]);
  expect(failure.facts.problems).toHaveLength(4);
});

test("a guest that could not be made is no configuration, as for the command", () => {
  const { status, stderr } = check("--memory-guest", "--size=16MiB");
  expect(status).toBe(2);
  expect(stderr).toContain("--working-set is 64.0 MiB: it must fit into --size, which is 16.0 MiB");
  expect(check("--memory-guest", "--size=16MiB", "--working-set=4MiB").status).toBe(0);
});

test("without a check the rules are told, and parameters are not asked for", () => {
  const argv = [PROGRAM, "legality", "--side=source"];
  const { status, stderr } = spawnSync(process.execPath, argv, { encoding: "utf8" });
  expect(status).toBe(2);
  expect(stderr).toContain('--side is not a flag of "legality"');
});

/** What a check says of these arguments, judged in this process. */
function verdict(...args: readonly string[]): Judgement {
  const parsed = parseFlags(LEGALITY_CHECK, args);
  expect(parsed.mistakes).toEqual([]);
  return judge(parsed.options, checkedFeatures(parsed));
}

function broken(...args: readonly string[]): string[] {
  return verdict("tcp:host:4444", ...args).problems.map(({ rule }) => rule);
}

function undecided(...args: readonly string[]) {
  const open = verdict("tcp:host:4444", ...args).undecided;
  return open.map(({ rule, needs }) => `${rule}: ${needs.join()}`);
}

test("what the host can do is decided where it or its host is said, and else it needs to be known", () => {
  const open = ["auto-converge-needs-throttle: throttle"];
  expect([broken("--auto-converge"), undecided("--auto-converge")]).toEqual([[], open]);
  for (const said of ["--throttle", "--host=memory-guest"]) {
    expect(verdict("tcp:host:4444", "--auto-converge", said).legal).toBe(true);
  }
  for (const said of ["--no-throttle", "--host=files", "--memory=ram=file:/nowhere"]) {
    expect(broken("--auto-converge", said)).toEqual(["auto-converge-needs-throttle"]);
    expect(undecided("--auto-converge", said)).toEqual([]);
  }
  expect(undecided("--auto-converge", "--host=qemu")).toEqual(open);

  const postcopy = ["scan-excludes-postcopy: dirtyLog", "postcopy-needs-faults: faults"];
  expect(undecided("--postcopy=manual").sort()).toEqual(postcopy.sort());
  expect(verdict("tcp:h:1", "--postcopy=manual", "--host=memory-guest").legal).toBe(true);
  expect(broken("--postcopy=manual", "--qemu=/nowhere")).toContain("scan-excludes-postcopy");
  // Who takes in what lies in files here may have another host.
  expect(undecided("--postcopy=manual", "--host=files")).toEqual(["postcopy-needs-faults: faults"]);
  expect(broken("--postcopy=manual", "--host=files", "--side=destination")).toEqual([
    "postcopy-needs-faults",
  ]);
  const noAddress = verdict().undecided.map(({ rule }) => rule);
  expect(noAddress).toEqual(["fd-names-every-channel", "file-is-not-live"]);
});

const PAUSE = "--pause-command=x";
const RESUME = "--resume-command=y";
const MEMORY = "--memory=ram=file:/nowhere";
const OWN = "--memory-guest";

/** For each rule of the commands' own arguments that break it and nothing else, and some that do not. */
const CASES: Readonly<Record<string, { breaks: string[]; keeps: string[] }>> = {
  "memory-is-for-files": { breaks: [MEMORY, "--qemu=/q"], keeps: [MEMORY] },
  "monitor-is-for-qemu": {
    breaks: ["--qemu=/q", "--host=files"],
    keeps: ["--qemu=/q", "--host=qemu"],
  },
  "own-guest-is-memory-guest": { breaks: [OWN, "--qemu=/q"], keeps: [OWN] },
  "shape-is-for-own-guest": { breaks: [MEMORY, "--size=1GiB"], keeps: [OWN, "--size=1GiB"] },
  "shape-is-for-the-source": {
    breaks: [OWN, "--seed=7", "--side=destination"],
    keeps: [OWN, "--seed=7", "--side=source"],
  },
  "vcpus-are-for-own-guest": {
    breaks: ["--qemu=/q", "--vcpus=2"],
    keeps: [OWN, "--vcpus=2", "--side=destination"],
  },
  "run-for-is-for-own-guest": {
    breaks: [MEMORY, "--run-for=1s", "--side=destination"],
    keeps: [OWN, "--run-for=1s", "--side=destination"],
  },
  "run-for-is-for-the-destination": {
    breaks: [OWN, "--run-for=1s"],
    keeps: ["--host=memory-guest", "--run-for=1s", "--side=destination"],
  },
  "pause-command-is-for-files": {
    breaks: ["--qemu=/q", PAUSE, RESUME],
    keeps: [MEMORY, "--dirty-log=scan", PAUSE, RESUME],
  },
  "pause-command-needs-scan": {
    breaks: [MEMORY, PAUSE, RESUME],
    keeps: [MEMORY, PAUSE, RESUME, "--dirty-log=scan"],
  },
  "pause-command-is-for-the-source": {
    breaks: [MEMORY, PAUSE, RESUME, "--dirty-log=scan", "--side=destination"],
    keeps: [MEMORY, PAUSE, RESUME, "--dirty-log=scan", "--side=source"],
  },
  "pause-command-needs-resume-command": {
    breaks: [MEMORY, "--dirty-log=scan", PAUSE],
    keeps: [MEMORY, "--dirty-log=scan"],
  },
  "resume-command-needs-pause-command": {
    breaks: [MEMORY, RESUME],
    keeps: [MEMORY],
  },
  "files-are-not-marked": {
    breaks: [MEMORY, "--dirty-log=bitmap"],
    keeps: ["--dirty-log=bitmap"],
  },
  "files-are-not-throttled": { breaks: [MEMORY, "--throttle"], keeps: [MEMORY, "--no-throttle"] },
  "files-have-no-faults": {
    breaks: [MEMORY, "--side=destination", "--faults"],
    keeps: [MEMORY, "--side=source", "--faults"],
  },
  "qemu-is-scanned": {
    breaks: ["--qemu=/q", "--dirty-log=none"],
    keeps: ["--qemu=/q", "--dirty-log=scan"],
  },
  "qemu-has-no-faults": { breaks: ["--host=qemu", "--faults"], keeps: ["--host=qemu"] },
  "memory-guest-marks": {
    breaks: ["--host=memory-guest", "--dirty-log=scan"],
    keeps: ["--host=memory-guest", "--dirty-log=bitmap"],
  },
  "memory-guest-is-throttled": {
    breaks: ["--host=memory-guest", "--no-throttle"],
    keeps: ["--host=memory-guest", "--throttle"],
  },
  "memory-guest-has-faults": {
    breaks: ["--host=memory-guest", "--no-faults"],
    keeps: ["--host=memory-guest"],
  },
};

test("every rule of the commands' own is broken alone, with its reason, and can be kept", () => {
  const rules = [...FLAG_RULES, ...HOST_RULES];
  expect(Object.keys(CASES)).toEqual(rules.map(({ id }) => id));
  for (const { id, reason } of rules) {
    const { breaks = [], keeps = [] } = CASES[id] ?? {};
    const { legal, problems } = verdict("tcp:host:4444", ...breaks);
    expect([id, legal, problems.map(({ rule }) => rule)]).toEqual([id, false, [id]]);
    expect(problems[0]?.reason).toBe(reason);
    expect(problems[0]?.message.toLowerCase()).toContain(reason.slice(0, -1).toLowerCase());
    expect(problems[0]?.message).not.toMatch(/undefined|unknown/);
    expect(reason).toMatch(/^[A-Z][a-z]*,? .+\.$/);
    expect(verdict("tcp:host:4444", ...keeps)).toEqual({
      legal: true,
      problems: [],
      undecided: [],
    });
  }
});

test(`a check comes to the verdict of the command that would begin (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const pick = <T>(values: readonly T[]): T | undefined => values[random.below(values.length)];
  const some = (...args: readonly string[]) => args.filter(() => random.below(3) === 0);
  let brokenRules = 0;
  for (let run = 0; run < 300; run += 1) {
    const options: Record<string, unknown> = {};
    for (const key of PARAMETER_KEYS) {
      const row = rowOf(key);
      if (random.below(3) > 0) continue;
      if (row.type === "boolean") options[key] = random.below(2) === 0;
      else if (row.type === "choice") options[key] = pick(row.choices);
      else options[key] = pick([row.min, row.max, row.default]);
    }
    const side = pick(["source", "destination"] as const) ?? "source";
    const guests = [[MEMORY], ["--qemu=/q"], [OWN], [MEMORY, "--qemu=/q"], [OWN, "--qemu=/q"]];
    const guest = pick([...guests, [OWN, MEMORY]]) ?? [];
    const dirtyLog = `--dirty-log=${pick(["none", "scan"])}`;
    const args = [
      pick(["tcp:host:4444", "fd:3,4", "file:/x", "exec:true"]) ?? "",
      ...[...flagsOf(options as ParameterOptions), ...guest],
      ...some("--record=/nowhere", "--control=/nowhere"),
      ...some("--vcpus=3"),
      ...(side === "source" ? some(PAUSE, RESUME, dirtyLog, "--size=1GiB") : some("--run-for=0ms")),
    ];
    const { problems } = side === "source" ? parseFlags(SEND, args) : parseFlags(RECEIVE, args);
    const checked = verdict(...args, `--side=${side}`).problems;
    expect(
      checked.map(({ message }) => message),
      args.join(" "),
    ).toEqual(problems);
    brokenRules += problems.length;
  }
  expect(brokenRules).toBeGreaterThan(100);
});

test("a broken rule has all that the table says", () => {
  expect(verdict("tcp:host:4444", "--deflate-level=3").problems).toEqual([
    {
      rule: "deflate-level-needs-deflate",
      message: expect.stringContaining("--compression must be deflate: it is none"),
      reason: "The level is deflate's, which nothing else uses.",
    },
  ]);
});
