import { expect, test } from "vitest";
import { addressFeatures, type Command, flagsOf, parseFlags } from "../cli/flags.ts";
import { helpText, overviewText } from "../cli/help.ts";
import { formatValue, parseValue } from "../cli/values.ts";
import type { Domain } from "../engine/domain.ts";
import { flagOf, PARAMETER_KEYS, type ParameterKey, rowOf } from "../engine/parameters.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const SEND = {
  name: "send",
  summary: "Moves a guest to a destination that listens.",
  positionals: [{ name: "ADDRESS", meaning: "where the destination listens" }],
  flags: {
    memory: {
      value: "text",
      placeholder: "NAME=file:PATH",
      repeatable: true,
      meaning: "A block of guest RAM.",
    },
    size: {
      value: { type: "bytes", min: 4096, max: 2 ** 40 },
      default: 4096,
      meaning: "A size.",
    },
    pattern: { value: { type: "choice", choices: ["hot", "sweep"] }, meaning: "A pattern." },
    json: { meaning: "One JSON object in a line for every event." },
    help: { short: "h", meaning: "Says this." },
  },
  parameters: true,
  features: ([address]: readonly string[]) => ({ side: "source", ...addressFeatures(address) }),
} as const satisfies Command;

const ADDRESS = "tcp:127.0.0.1:4444";

function parse(...flags: string[]) {
  return parseFlags(SEND, [ADDRESS, ...flags]);
}

/** Everything at the edges of a row, and some within. */
function valuesOf(key: ParameterKey): (number | boolean | string)[] {
  const row = rowOf(key);
  if (row.type === "boolean") return [true, false];
  if (row.type === "choice") return [...row.choices];
  const more = row.powerOfTwo ? [] : [row.min + 1, row.max - 1];
  return [row.default, row.min, row.max, ...more, ...(row.zero === undefined ? [] : [0])];
}

for (const key of PARAMETER_KEYS) {
  test(`--${flagOf(key)} gives back what it was given`, () => {
    for (const value of valuesOf(key)) {
      const [flag = ""] = flagsOf({ [key]: value });
      expect(parse(flag).options).toEqual({ [key]: value });
      if (typeof value !== "boolean")
        expect(parse(...flag.split("=")).options).toEqual({ [key]: value });
    }
  });

  test(`--${flagOf(key)} refuses what it cannot use and says what would be right`, () => {
    const row = rowOf(key);
    const outside = "max" in row ? [formatValue(row, row.max * 2), "-1"] : [];
    for (const text of [...outside, "maybe", "5constructor", "0x10", "1e3", "NaN"]) {
      const { options, problems } = parse(`--${flagOf(key)}=${text}`);
      expect(options).toEqual({});
      expect(problems).toHaveLength(1);
      expect(problems[0]).toMatch(new RegExp(`^--${flagOf(key)} must be .+: it is "${text}"$`));
    }
  });
}

test("numbers are written in the units that people use", () => {
  const given = parse(
    "--chunk-size=512KiB",
    "--max-bandwidth=1.5MiB/s",
    "--downtime-limit=2s",
    "--timeout=5min",
    "--auto-converge",
    "--throttle-max=50%",
  );
  expect(given.problems).toEqual([]);
  expect(given.options).toEqual({
    chunkBytes: 512 * 1024,
    maxBandwidthBytesPerSecond: 1.5 * 1024 * 1024,
    downtimeLimitMs: 2000,
    timeoutMs: 300_000,
    autoConverge: true,
    throttleMaxPercent: 50,
  });
});

test("a size in a unit may be no whole number of bytes, and means the bytes before", () => {
  const cacheOf = (text: string) => parse("--xbzrle", `--xbzrle-cache-size=${text}`);
  expect(cacheOf("1.3GiB").problems).toEqual([]);
  expect(cacheOf("1.3GiB").options.xbzrleCacheBytes).toBe(Math.floor(1.3 * 2 ** 30));
  expect(cacheOf("65536.5").options.xbzrleCacheBytes).toBe(65536);
  expect(parse("--device-limit=0.5").problems).toHaveLength(1);
  expect(parse("--chunk-size=1.3MiB").problems).toEqual([
    '--chunk-size must be a size that is a power of two from 128KiB to 1GiB: it is "1.3MiB"',
  ]);
});

test("a value is written in the largest unit that is exact", () => {
  const cases: [Domain["type"], number, string][] = [
    ["bytes", 2 ** 21, "2MiB"],
    ["bytes", 1536, "1536B"],
    ["bytes", 0, "0"],
    ["bytesPerSecond", 2 ** 30, "1GiB/s"],
    ["milliseconds", 3_600_000, "1h"],
    ["milliseconds", 90_000, "90s"],
    ["milliseconds", 0.5, "0.5ms"],
    ["percent", 20, "20"],
  ];
  for (const [type, value, text] of cases) {
    const domain = { type, min: 0, max: 2 ** 40 } as Domain;
    expect(formatValue(domain, value)).toBe(text);
    expect(parseValue(domain, text)).toBe(value);
  }
});

test("a switch is on, off, or has its value said", () => {
  expect(parse("--checksum").options).toEqual({ checksum: true });
  expect(parse("--checksum=true").options).toEqual({ checksum: true });
  expect(parse("--no-checksum").options).toEqual({ checksum: false });
  expect(parse("--checksum=false").options).toEqual({ checksum: false });
  expect(parse("--no-checksum=true").problems).toEqual([
    '--no-checksum takes no value: it is "true"',
  ]);
});

test("a command's own flags come typed, with their defaults", () => {
  const { flags, positionals, problems } = parse(
    "--memory=a=file:/x",
    "--memory",
    "b=file:/y",
    "-h",
  );
  expect(problems).toEqual([]);
  expect(positionals).toEqual([ADDRESS]);
  const memory: readonly string[] = flags.memory;
  const size: number = flags.size;
  const pattern: "hot" | "sweep" | undefined = flags.pattern;
  const help: boolean = flags.help;
  expect({ memory, size, pattern, help }).toEqual({
    memory: ["a=file:/x", "b=file:/y"],
    size: 4096,
    pattern: undefined,
    help: true,
  });
  expect(parse("--size=1MiB", "--pattern=hot").flags).toMatchObject({
    size: 2 ** 20,
    pattern: "hot",
  });
});

test("all problems of a command line are reported at once", () => {
  const { problems } = parseFlags(SEND, [
    ...["--chanels", "3", "-memory", "a=file:/x", "--channels", "-3", "--timeout=100ms"],
    ...["--downtime-limit", "2s", "--chunk-size", "3MiB", "--pattern", "warm", "--bogus=1", "-q"],
    ...["--json", "--json", ADDRESS, "unix:/tmp/x", "--step-timeout"],
  ]);
  expect(problems).toEqual([
    '--chanels is not a flag of "send" (did you mean "--channels"?)',
    '-memory is not a flag of "send" (did you mean "--memory"?)',
    '--channels must be a whole number from 1 to 64: it is "-3"',
    '--chunk-size must be a size that is a power of two from 128KiB to 1GiB: it is "3MiB"',
    '--pattern must be "hot" or "sweep": it is "warm"',
    '--bogus is not a flag of "send"',
    '-q is not a flag of "send"',
    "--json is given twice",
    "--step-timeout needs a value: a time from 10ms to 1h",
    '"unix:/tmp/x" is more than "send" takes',
    "where --downtime-limit is given, --timeout must be at least --downtime-limit: it is 100ms and --downtime-limit is 2s (a pause longer than all the time before it is a mistake of units)",
  ]);
});

test("a forgotten value does not swallow the next flag", () => {
  const { flags, problems } = parse("--channels", "--json");
  expect(flags.json).toBe(true);
  expect(problems).toEqual(["--channels needs a value: a whole number from 1 to 64"]);
  expect(parse("--memory", "").problems).toEqual(["--memory needs a value: NAME=file:PATH"]);
});

test("a missing argument is named with its meaning", () => {
  expect(parseFlags(SEND, []).problems).toEqual([
    "ADDRESS is missing: where the destination listens",
  ]);
});

test("what follows two dashes is no flag", () => {
  for (const argument of ["--json", "--bogus", "-word", "--channels=2"]) {
    const { positionals, problems } = parseFlags(SEND, ["--", argument]);
    expect({ positionals, problems }).toEqual({ positionals: [argument], problems: [] });
  }
});

test("names that every object has are no flags", () => {
  for (const name of ["--constructor", "--__proto__", "--toString", "--no-constructor"])
    expect(parse(name).problems).toEqual([`${name} is not a flag of "send"`]);
});

test("the address takes part in the rules of legality", () => {
  expect(parseFlags(SEND, ["fd:3,4", "--channels=2"]).problems).toHaveLength(1);
  expect(parseFlags(SEND, ["fd:3,4,5", "--channels=2"]).problems).toEqual([]);
  expect(addressFeatures("fd:3,4,5")).toEqual({ address: "fd", descriptors: 3 });
  expect(addressFeatures("unix:/x")).toEqual({ address: "unix" });
  expect(addressFeatures("http://x")).toEqual({});
});

test("a command without parameters does not know their flags", () => {
  const command = { ...SEND, name: "legality", positionals: [], parameters: false } as const;
  expect(parseFlags(command, ["--channels=2"]).problems).toEqual([
    '--channels is not a flag of "legality"',
  ]);
});

test("help names every flag once, in lines that fit", () => {
  const help = helpText(SEND);
  for (const key of PARAMETER_KEYS)
    expect(help.match(new RegExp(`^  --(?:\\[no-\\])?${flagOf(key)}\\b(?!-)`, "gm"))).toHaveLength(
      1,
    );
  for (const name of Object.keys(SEND.flags)) expect(help).toContain(`--${name}`);
  expect(help).toMatch(/^Usage: multifd send ADDRESS \[FLAGS\]\n/);
  expect(Math.max(...help.split("\n").map((line) => line.length))).toBeLessThanOrEqual(100);
  expect(help).not.toMatch(/ \n|undefined/);
  expect(overviewText([SEND])).toContain("send  Moves a guest");
});

const seed = seedFromEnvironment();

test(`nonsense is told, never thrown (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const words = [
    "--",
    "-",
    "",
    "=",
    "--=",
    "--no-",
    "-h",
    "--json",
    "--memory",
    "--channels",
    "--checksum",
  ];
  const pieces = [
    ...words,
    "--no-channels",
    "--no-json",
    "=true",
    "=",
    "4",
    "-4",
    "é",
    "\n",
    "\0",
    "%",
    "--a-b",
  ];
  const pick = () => pieces[random.below(pieces.length)] ?? "";
  let told = 0;
  for (let run = 0; run < 2000; run += 1) {
    const argv = Array.from(
      { length: random.below(6) },
      () => pick() + (random.below(3) === 0 ? pick() : ""),
    );
    const { problems, positionals, options } = parseFlags(SEND, argv);
    if (problems.length > 0) told += 1;
    else expect(positionals, JSON.stringify(argv)).toHaveLength(1);
    for (const key of Object.keys(options)) expect(PARAMETER_KEYS).toContain(key);
    for (const problem of problems) expect(problem).not.toMatch(/undefined|\[object/);
  }
  expect(told).toBeGreaterThan(1000);
});
