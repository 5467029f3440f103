import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, type TestContext, test } from "vitest";
import { CliFolder } from "./fixtures/cli-folder.ts";
import { expectNoTrace } from "./fixtures/cli-outcome.ts";

const PROGRAM = fileURLToPath(new URL("../cli/multifd.js", import.meta.url));
const LIMIT_MS = 50_000;

/** Several rounds of half a second, and then it switches over whatever the downtime. */
const ROUNDS = [
  ...["demo", "--size=32MiB", "--working-set=16MiB", "--run-for=10ms", "--channels=2"],
  ...["--max-bandwidth=40MiB/s", "--max-rounds=3", "--non-convergence=switch-over"],
];
const QUICK = ["demo", "--size=32MiB", "--working-set=4MiB", "--run-for=10ms", "--channels=2"];

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A terminal clears what stands behind the cursor. */
const CLEAR_REST = "\u001b[K";

/** Runs a line of shell in which `$MULTIFD` is the command. */
async function shell(line: string, env: Readonly<Record<string, string>> = {}): Promise<Ended> {
  const child = spawn("sh", ["-c", line], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, MULTIFD: `${process.execPath} ${PROGRAM}`, ...env },
    timeout: LIMIT_MS,
    killSignal: "SIGKILL",
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const { promise, resolve, reject } = Promise.withResolvers<number | null>();
  child.once("close", resolve);
  child.once("error", reject);
  return { status: await promise, stdout, stderr };
}

/**
 * Runs the command in a terminal that is so wide. What it writes to either output is the terminal's
 * text.
 */
async function inTerminal(
  context: TestContext,
  options: { columns: number; args: readonly string[]; term?: string },
): Promise<Ended> {
  const { columns, args, term = "xterm" } = options;
  const probe = await shell("script -qec true /dev/null");
  if (probe.status !== 0) {
    process.stderr.write(`\nNOT TESTED: "${context.task.name}" needs script of util-linux\n`);
    context.skip("there is no script of util-linux");
  }
  const line = `stty cols ${columns}; exec $MULTIFD ${args.join(" ")}`;
  return await shell(`script -qec '${line}' /dev/null`, { TERM: term });
}

/** What stood in the terminal's line one after the other, until a line feed made it stay. */
function drawnIn(text: string): string[] {
  return text.split(/\r\n|\r/).map((line) => line.replaceAll(CLEAR_REST, ""));
}

const BAR = /^\[=* *\] round \d+, dirty [\d.]+ \w+, [\d.]+ \w+\/s/;

test("a terminal gets a bar with round, dirty, rate and expected downtime", async (context) => {
  const { status, stdout } = await inTerminal(context, { columns: 80, args: ROUNDS });
  expect(status).toBe(0);
  const lines = drawnIn(stdout);
  const bars = lines.filter((line) => BAR.test(line));
  expect(bars.length).toBeGreaterThan(3);
  expect(bars).toContainEqual(expect.stringMatching(/ round 1, dirty /));
  expect(bars).toContainEqual(expect.stringMatching(/, expected downtime [\d.]+ (?:ms|s)$/));
  for (const bar of bars) expect(bar.length).toBeLessThan(80);
  // Each is drawn over the one before, and nothing is cleared before it: that would flicker.
  expect(stdout).not.toContain(`\r${CLEAR_REST}[`);
  expect(stdout).not.toMatch(/phase precopy\r?\n/);
  expect(lines.slice(-3)).toContain("verified   yes: nothing was lost");
});

test("a narrow terminal gets the parts of the bar that fit, the important ones", async (context) => {
  const { status, stdout } = await inTerminal(context, { columns: 40, args: ROUNDS });
  expect(status).toBe(0);
  const bars = drawnIn(stdout).filter((line) => line.startsWith("["));
  expect(bars.length).toBeGreaterThan(3);
  for (const bar of bars) {
    expect(bar).toMatch(/^\[=* *\] (?:round \d+|\w+), dirty [\d.]+ \w+(?:, [\d.]+ \w+\/s)?$/);
    expect(bar.length).toBeLessThan(40);
  }
});

test("a terminal that does not say how wide it is gets help as a pipe does", async (context) => {
  const { stdout } = await inTerminal(context, { columns: 0, args: ["send", "--help"] });
  expect(stdout.replaceAll("\r\n", "\n")).toBe((await shell("$MULTIFD send --help | cat")).stdout);
});

test("a terminal that cannot redraw gets plain lines", async (context) => {
  const options = { columns: 80, args: ROUNDS, term: "dumb" };
  const { status, stdout } = await inTerminal(context, options);
  expect(status).toBe(0);
  expect(stdout).not.toContain("\u001b");
  expect(drawnIn(stdout)).toContain("phase precopy");
});

test("with --json a terminal gets events as well", async (context) => {
  const options = { columns: 80, args: [...QUICK, "--json"] };
  const { status, stdout } = await inTerminal(context, options);
  expect(status).toBe(0);
  const events = stdout
    .trimEnd()
    .split("\r\n")
    .map((line) => JSON.parse(line).event);
  expect(events.at(-1)).toBe("completed");
});

test("a terminal is left with a whole line before a failure is told", async (context) => {
  using folder = new CliFolder();
  const image = folder.image("ram", { bytes: 65_536, seed: 1 });
  const args = ["send", "tcp:127.0.0.1:1", "--memory", `ram=file:${image}`];
  const { status, stdout } = await inTerminal(context, { columns: 80, args });
  expect(status).toBe(1);
  expect(stdout).toContain(`\rphase connect${CLEAR_REST}\r${CLEAR_REST}CONNECT_FAILED `);
  expect(stdout).toMatch(/\r\n$/);
});

test("a pipe gets plain lines with round, dirty, rate and expected downtime", async () => {
  const { status, stdout, stderr } = await shell(`$MULTIFD ${ROUNDS.join(" ")} | cat`);
  expect([status, stderr]).toEqual([0, ""]);
  for (const control of ["\r", "\u001b"]) expect(stdout).not.toContain(control);
  const lines = stdout.split("\n");
  expect(lines).toContainEqual(
    expect.stringMatching(
      /^precopy, round \d+, dirty [\d.]+ \w+, [\d.]+ \w+\/s, .*sent [\d.]+ \w+$/,
    ),
  );
  expect(lines).toContainEqual(expect.stringMatching(/, expected downtime [\d.]+ (?:ms|s), /));
  expect(lines).toContain("phase precopy");
});

test("a reader that leaves after the first line ends nothing and hears of nothing", async () => {
  for (const args of [QUICK, ["parameters"], ["send", "--help"]]) {
    const line = `{ $MULTIFD ${args.join(" ")}; echo "status $?" >&2; } | head -n 1`;
    const { stdout, stderr } = await shell(line);
    expect(stdout.split("\n")).toHaveLength(2);
    expect(stderr).toBe("status 0\n");
  }
});

test("a reader that is slow gets everything, also what came at the very end", async () => {
  // The pipe is full before the command says its first word.
  const fill = "head -c 65536 /dev/zero";
  const line = `{ ${fill}; $MULTIFD parameters --json; } | { sleep 1; tail -c +65537; }`;
  const { stdout, stderr } = await shell(line);
  expect(stderr).toBe("");
  expect(stdout).toBe((await shell("$MULTIFD parameters --json")).stdout);
  expect(JSON.parse(stdout)).toBeInstanceOf(Array);
});

test("a disk that is full loses the output and not the migration", async () => {
  const moved = await shell(`$MULTIFD ${QUICK.join(" ")} > /dev/full`);
  expect(moved.status).toBe(0);
  expect(moved.stderr).toMatch(/^Some output was lost: ENOSPC: .*\n$/);
  const listed = await shell("$MULTIFD parameters > /dev/full");
  expect(listed.status).toBe(1);
  expectNoTrace(listed.stderr);
});

test("without any output at all a migration is made all the same", async () => {
  const { status } = await shell(`$MULTIFD ${QUICK.join(" ")} >&- 2>&-`);
  expect(status).toBe(0);
});
