import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { FAILURES } from "../base/errors.ts";
import { ALL_FEATURES, RULES } from "../cli/rules.ts";
import { flagOf, PARAMETER_KEYS, PARAMETERS } from "../engine/parameters.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import { expectNoTrace, failureOf } from "./fixtures/cli-outcome.ts";
import { runCli } from "./run-cli.ts";

const MEMORY = ["--memory", "ram=file:/dev/null"];
const ANYWHERE = "tcp:127.0.0.1:1";

/** Longer than the kernel lets a socket's be. */
const LONG_PATH = `/${"a".repeat(200)}`;

/** Wrong usage, and every problem that must be told at once; a regular expression each. */
const WRONG: readonly { readonly args: readonly string[]; readonly problems: readonly RegExp[] }[] =
  [
    { args: [], problems: [/^a command is needed$/] },
    { args: ["sned"], problems: [/^"sned" is not a command; did you mean "send"\?$/] },
    { args: ["--verison"], problems: [/did you mean "--version"\?$/] },
    { args: ["bogus-command"], problems: [/^"bogus-command" is not a command$/] },
    { args: ["send"], problems: [/^ADDRESS is missing/, /^--memory NAME=file:PATH is needed/] },
    { args: ["receive"], problems: [/^ADDRESS is missing/, /^--memory NAME=file:PATH is needed/] },
    {
      args: ["send", "", ...MEMORY],
      problems: [/^address "" must be tcp:HOST:PORT, unix:PATH, fd:N/],
    },
    {
      args: ["send", "localhost:4444", ...MEMORY],
      problems: [/^address "localhost:4444" must be/],
    },
    {
      args: ["send", "tcp:127.0.0.1:4444", ...MEMORY, "--dirty-log", "bitmap"],
      problems: [/^--dirty-log must be "none" or "scan": it is "bitmap"$/],
    },
    {
      args: ["send", "tcp:127.0.0.1:4444", ...MEMORY, "--dirty-log", "scan", "--max-rounds", "1"],
      problems: [/^where dirtyLog is scan, --max-rounds must be at least 2/],
    },
    {
      args: ["send", "tcp:127.0.0.1:4444", ...MEMORY, "--pause-command", "true"],
      problems: [
        /^where host is files and --pause-command is given, dirtyLog must be scan: it is none/,
        /^where --pause-command is given, --resume-command must be given: it is left out/,
      ],
    },
    {
      args: ["receive", ANYWHERE, ...MEMORY, "--postcopy", "manual"],
      problems: [/^where --postcopy is .*, faults must be true: it is false/],
    },
    {
      args: ["send", "tcp:127.0.0.1:99999", ...MEMORY],
      problems: [/with a port in 0\.\.65535$/],
    },
    { args: ["receive", "tcp:127.0.0.1", ...MEMORY], problems: [/with a port in 0\.\.65535$/] },
    { args: ["receive", "unix:", ...MEMORY], problems: [/lacks a path$/] },
    { args: ["receive", `unix:${LONG_PATH}`, ...MEMORY], problems: [/has a path of 201/] },
    {
      args: ["send", ANYWHERE, ...MEMORY, "--control", LONG_PATH],
      problems: [/^--control has a path of 201 bytes: a socket's has less than/],
    },
    {
      args: ["receive", ANYWHERE, "--qemu", LONG_PATH],
      problems: [/^--qemu has a path of 201 bytes: a socket's has less than/],
    },
    { args: ["recover", LONG_PATH], problems: [/^PATH has a path of 201 bytes: a socket's has/] },
    { args: ["recover", ""], problems: [/^PATH is empty: give the --control of/] },
    { args: ["send", "exec:", ...MEMORY], problems: [/lacks a command$/] },
    {
      args: ["send", "file:/tmp/snapshot", ...MEMORY],
      problems: [/^where address is file, migration must not be live/],
    },
    {
      args: ["send", "fd:70,71,72", "--channels", "2", ...MEMORY],
      problems: [
        /^address names descriptor 70, which is not a socket/,
        /descriptor 71/,
        /descriptor 72/,
      ],
    },
    {
      args: ["send", "fd:0", ...MEMORY],
      problems: [/^address names descriptor 0/, /^where address is fd.*--channels \+ 1/],
    },
    {
      args: ["receive", ANYWHERE, ...MEMORY, "--memory", "ram=file:/dev/zero"],
      problems: [/^--memory names block "ram" twice$/],
    },
    {
      args: ["receive", ANYWHERE, ...MEMORY, "--memory", "rom=file:/dev/null"],
      problems: [/^--memory puts two blocks in one place: "\/dev\/null" at offset 0$/],
    },
    {
      args: [
        ...["send", "nowhere", "surplus", "--memory", "ram:/dev/null", "--chanels", "4", "-x"],
        ...["--channels", "0", "--max-bandwidth", "5", "--no-json", "--downtime-limit"],
      ],
      problems: [
        /^address "nowhere" must be/,
        /^--chanels is not a flag of "send" \(did you mean "--channels"\?\)$/,
        /^--channels must be a whole number from 1 to 64: it is "0"$/,
        /^--max-bandwidth must be .* a rate .*: it is "5"$/,
        /^--downtime-limit needs a value/,
        /^-x is not a flag of "send"$/,
        /^"surplus" is more than "send" takes$/,
        /^--memory must be NAME=file:PATH: it is "ram:\/dev\/null"$/,
      ],
    },
    {
      args: ["send", ANYWHERE, "--memory", "ram=file:/dev/null,offset=1.3KiB,size=much,size=0"],
      problems: [
        /^--memory ram: size must be more than 0 bytes$/,
        /^--memory ram: size is given twice$/,
        /^--memory ram: size "much" is not a size/,
        /^--memory ram: offset "1\.3KiB" is not a whole number of bytes$/,
      ],
    },
    {
      args: ["demo", "--size", "1KiB", "--patern", "hot", "there"],
      problems: [/^--size must be/, /did you mean "--pattern"/, /^"there" is more than/],
    },
    { args: ["parameters", "--jsn", "all"], problems: [/did you mean "--json"/, /^"all" is more/] },
    { args: ["legality", "--channels=3"], problems: [/^--channels is not a flag of "legality"$/] },
  ];

for (const { args, problems } of WRONG) {
  test(`"multifd ${args.join(" ").slice(0, 60)}" tells all that is wrong, and ends with 2`, async () => {
    const told = await runCli([...args, "--json"].filter((arg) => arg !== "--no-json"));
    expect(told.status).toBe(2);
    expect(told.stderr).toBe("");
    expect(told.events.map(({ event }) => event)).toEqual(["failed"]);
    const { code, facts, message, remedy } = failureOf(told);
    expect([code, remedy]).toEqual(["CONFIGURATION_INVALID", "reconfigure"]);
    const found = (facts as { problems: string[] }).problems;
    for (const problem of problems) {
      expect(found).toContainEqual(expect.stringMatching(problem));
    }
    expect(found).toHaveLength(problems.length);
    for (const problem of found) expect(message).toContain(problem);
  });
}

test("people are told what is wrong on standard error, a line for each problem", async () => {
  const args = ["send", "nowhere", "--channels", "0", ...MEMORY];
  const { status, stdout, stderr } = await runCli(args);
  expect([status, stdout]).toEqual([2, ""]);
  expect(stderr.split("\n")).toEqual([
    "CONFIGURATION_INVALID: Cannot use this configuration:",
    expect.stringMatching(/^ {2}address "nowhere" must be/),
    '  --channels must be a whole number from 1 to 64: it is "0"',
    expect.stringMatching(/^Correct every problem listed/),
    "",
  ]);
});

test("without a command people are told which there are", async () => {
  for (const args of [[], ["sned"]]) {
    const { status, stdout, stderr } = await runCli(args);
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(/^(?:a command is needed|"sned" is not a command).*\n\nUsage: multifd/);
    for (const name of ["demo", "receive", "send", "parameters", "legality", "failures"]) {
      expect(stderr).toMatch(new RegExp(`^  ${name} `, "m"));
    }
  }
});

for (const name of ["demo", "receive", "send", "parameters", "legality", "failures"]) {
  test(`"multifd ${name} --help" tells what it takes, whatever else is there`, async () => {
    const { status, stdout, stderr } = await runCli([name, "--nonsense", "--help"]);
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(new RegExp(`^Usage: multifd ${name} .*\\[FLAGS\\]\n`));
    expect(stdout).toContain("--json");
    const takesParameters = ["demo", "receive", "send", "legality"].includes(name);
    for (const key of PARAMETER_KEYS) {
      expect(stdout.includes(flagOf(key))).toBe(takesParameters);
    }
    expect((await runCli(["help", name])).stdout).toBe(stdout);
  });
}

test("the version is the package's", async () => {
  const description = readFileSync(new URL("../package.json", import.meta.url), "utf8");
  const { status, stdout } = await runCli(["--version"]);
  expect([status, stdout]).toEqual([0, `${JSON.parse(description).version}\n`]);
});

test("managers get the tables as JSON, and they are the engine's", async () => {
  // Not events: one document, as `JSON.parse` takes it.
  const read = (name: string) =>
    JSON.parse(
      execFileSync(process.execPath, ["cli/multifd.js", name, "--json"], { encoding: "utf8" }),
    );
  const parse = (name: string): Record<string, unknown>[] => read(name);
  expect(parse("parameters").map(({ name, default: preset }) => [name, preset])).toEqual(
    Object.entries(PARAMETERS).map(([key, row]) => [key, row.default]),
  );
  const { rules, features } = read("legality") as Record<string, Record<string, unknown>[]>;
  expect(rules?.map(({ id }) => id)).toEqual(RULES.map(({ id }) => id));
  expect(features?.map(({ name }) => name)).toEqual(Object.keys(ALL_FEATURES));
  expect(parse("failures").map(({ code, remedy, advice }) => [code, remedy, advice])).toEqual(
    Object.entries(FAILURES).map(([code, { remedy, advice }]) => [code, remedy, advice]),
  );
});

test("people get the tables as text that fits a page", async () => {
  for (const name of ["parameters", "legality", "failures"]) {
    const { status, stdout, stderr } = await runCli([name]);
    expect([status, stderr]).toEqual([0, ""]);
    expect(Math.max(...stdout.split("\n").map((line) => line.length))).toBeLessThanOrEqual(100);
  }
});

/** Right usage of what is not there: nothing hangs, and the reason helps. */
const IN_VAIN: readonly {
  readonly what: string;
  readonly args: (folder: CliFolder) => readonly string[];
  readonly code: string;
  readonly message: RegExp;
}[] = [
  {
    what: "memory that does not exist",
    args: (folder) => ["send", ANYWHERE, "--memory", `ram=file:${folder.at("missing")}`],
    code: "MEMORY_UNUSABLE",
    message: /"ram": it does not exist$/,
  },
  {
    what: "memory that is a folder",
    args: (folder) => ["send", ANYWHERE, "--memory", `ram=file:${folder.path}`],
    code: "MEMORY_UNUSABLE",
    message: /it is not a regular file$/,
  },
  {
    what: "a block beyond the file's end",
    args: (folder) => ["send", ANYWHERE, "--memory", `ram=file:${imageIn(folder)},offset=1MiB`],
    code: "MEMORY_UNUSABLE",
    message: /it has only 65536 bytes$/,
  },
  {
    what: "a port where nobody listens",
    args: (folder) => ["send", ANYWHERE, "--memory", `ram=file:${imageIn(folder)}`],
    code: "CONNECT_FAILED",
    message: /ECONNREFUSED/,
  },
  {
    what: "a socket that is not there",
    args: (folder) => [
      ...["send", `unix:${folder.at("socket")}`],
      ...["--memory", `ram=file:${imageIn(folder)}`],
    ],
    code: "CONNECT_FAILED",
    message: /ENOENT/,
  },
  {
    what: "a command that ends at once",
    args: (folder) => ["send", "exec:exit 3", "--memory", `ram=file:${imageIn(folder)}`],
    code: "CHANNEL_LOST",
    message: /channel 0 was lost/,
  },
  {
    what: "a command that ends at once, at the destination",
    args: (folder) => ["receive", "exec:exit 3", "--memory", `ram=file:${folder.at("new")}`],
    code: "CHANNEL_LOST",
    message: /channel 0 was lost/,
  },
  {
    what: "a source that does not come in time",
    args: (folder) => [
      ...["receive", "tcp:127.0.0.1:0", "--memory", `ram=file:${folder.at("new")}`],
      ...["--accept-timeout", "50ms"],
    ],
    code: "NO_SOURCE",
    message: /no source connected .* within 50 ms$/,
  },
  {
    what: "a command that does not speak in time",
    args: (folder) => [
      ...["receive", "exec:exec sleep 60", "--memory", `ram=file:${folder.at("new")}`],
      ...["--accept-timeout", "50ms"],
    ],
    code: "NO_SOURCE",
    message: /no source connected .* within 50 ms$/,
  },
  {
    what: "an address of another machine",
    args: (folder) => ["receive", "tcp:192.0.2.1:0", "--memory", `ram=file:${folder.at("new")}`],
    code: "ADDRESS_UNUSABLE",
    message: /EADDRNOTAVAIL/,
  },
  {
    what: "a socket in a folder that is missing",
    args: (folder) => [
      ...["receive", `unix:${folder.at("missing/socket")}`],
      ...["--memory", `ram=file:${folder.at("new")}`],
    ],
    code: "ADDRESS_UNUSABLE",
    message: /there is no folder ".*missing"$/,
  },
  {
    what: "a socket where a file is",
    args: (folder) => [
      ...["receive", `unix:${imageIn(folder)}`],
      ...["--memory", `ram=file:${folder.at("new")}`],
    ],
    code: "ADDRESS_UNUSABLE",
    message: /something of that name is there, and it is not a socket$/,
  },
];

for (const { what, args, code, message } of IN_VAIN) {
  test(`${what} is told with code ${code}, and ends with 1`, async () => {
    using folder = new CliFolder();
    const given = args(folder);
    const told = await runCli([...given, "--json"]);
    expect(failureOf(told)).toMatchObject({
      code,
      message: expect.stringMatching(message),
      remedy: FAILURES[code as keyof typeof FAILURES].remedy,
      advice: FAILURES[code as keyof typeof FAILURES].advice,
      at: given[0] === "send" ? "source" : "destination",
    });
    expect([told.status, told.stderr]).toEqual([1, ""]);
    expect(folder.has("new")).toBe(false);
  });
}

test("a failure is told to people in two lines on standard error", async () => {
  using folder = new CliFolder();
  const args = ["send", ANYWHERE, "--memory", `ram=file:${imageIn(folder)}`];
  const { status, stdout, stderr } = await runCli(args);
  expect([status, stdout]).toEqual([1, "phase connect\n"]);
  expect(stderr.split("\n")).toEqual([
    expect.stringMatching(/^CONNECT_FAILED \(at the source\): Cannot connect to "tcp:127/),
    FAILURES.CONNECT_FAILED.advice,
    "",
  ]);
  expectNoTrace(stderr);
});

function imageIn(folder: CliFolder): string {
  return folder.image("image", { bytes: 65_536, seed: 1 });
}
