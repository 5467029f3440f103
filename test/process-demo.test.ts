import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { Deadline } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import type { Report } from "../engine/statistics.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { seedFromEnvironment } from "./prng.ts";
import { type Cli, runCli, startCli } from "./run-cli.ts";

const execute = promisify(execFile);

const SEED = seedFromEnvironment();
const SIZES = ["--size", "32MiB", "--working-set", "4MiB"];
const SMALL = [...SIZES, "--run-for", "50ms"];
const ENDLESS = [...SIZES, "--run-for", "10min"];

/** It stays in pre-copy for so long that a test can do something about it. */
const SLOW = [...SMALL, "--max-bandwidth", "1MiB/s"];

const VARIANTS: readonly {
  readonly name: string;
  channels: number;
  readonly flags: readonly string[];
}[] = [
  { name: "a guest that sweeps over one channel", channels: 1, flags: ["--pattern", "sweep"] },
  {
    name: "a guest with strides over two channels with checksums",
    channels: 2,
    flags: ["--checksum", "--pattern", "stride"],
  },
  {
    name: "a guest with hot pages over eight channels in small chunks",
    channels: 8,
    flags: ["--pattern", "hot", "--chunk-size", "128KiB"],
  },
  {
    name: "a guest of four vCPUs that rewrite whole pages",
    channels: 4,
    flags: ["--vcpus", "4", "--changed-bytes", "4KiB"],
  },
  { name: "a guest that writes nothing", channels: 2, flags: ["--dirty-rate", "0"] },
];

for (const { name, channels, flags } of VARIANTS) {
  test(`the demo moves ${name} and checks every page (SEED=${SEED})`, async () => {
    const { status, events, stderr } = await runCli([
      "demo",
      "--json",
      `--seed=${SEED}`,
      `--channels=${channels}`,
      ...SMALL,
      ...flags,
    ]);
    expect([status, stderr]).toEqual([0, ""]);
    const last = must(events.at(-1), "it says how it ended");
    expect(last.event).toBe("completed");
    const report = last["report"] as Report;
    expect(report.verified).toBe(true);
    expect(report.guestBytes).toBe(32 * MIB);
    expect(report.channels).toHaveLength(1 + channels);
    expect(report.pages.zero).toBeGreaterThan(0);
  });
}

test(`the demo tells people what it did (SEED=${SEED})`, async () => {
  const { status, stdout, stderr } = await runCli(["demo", `--seed=${SEED}`, ...SMALL]);
  expect([status, stderr]).toEqual([0, ""]);
  const lines = stdout.split("\n");
  for (const line of [
    /^a guest runs here and moves to process \d+ at tcp:127\.0\.0\.1:\d+$/,
    /^phase precopy$/,
    /^it wrote \d+ pages here and \d+ there; every page was checked$/,
    /^completed$/,
    /^downtime {3}[\d.]+ (?:us|ms|s): pause .+, sync .+, pages .+, devices .+, hand-over .+$/,
    /^sent {7}[\d.]+ MiB; pages: \d+ zero \(\d+ left untouched\), \d+ raw$/,
    /^verified {3}yes: nothing was lost$/,
  ]) {
    expect(lines).toContainEqual(expect.stringMatching(line));
  }
});

test(`npm start is the demo, on the runtime that npm ci brought (SEED=${SEED})`, async () => {
  const flags = ["--json", `--seed=${SEED}`, ...SMALL];
  const { stdout } = await execute("npm", ["start", "--silent", "--", ...flags]);
  const last = JSON.parse(must(stdout.trim().split("\n").at(-1), "it says how it ended"));
  expect(last).toMatchObject({ event: "completed", report: { verified: true } });
});

test("npx finds the command in a checkout, without a build", async () => {
  const { stdout } = await execute("npx", ["--no-install", "multifd", "--version"]);
  const { version } = JSON.parse(readFileSync("package.json", "utf8"));
  expect(stdout).toBe(`${version}\n`);
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`a demo that gets ${signal} is cancelled and leaves no process behind`, async () => {
    await using cli = startCli(["demo", "--json", ...SLOW]);
    const child = await childOf(cli);
    cli.kill(signal);
    const exit = await cli.exit;
    expect(failureOf(exit)).toMatchObject({ code: "CANCELLED", at: "source" });
    expect([exit.status, exit.stderr]).toEqual([1, ""]);
    await untilGone(child);
  });
}

test("a demo that is killed leaves no process behind", async () => {
  await using cli = startCli(["demo", "--json", ...SLOW]);
  const child = await childOf(cli);
  cli.kill("SIGKILL");
  await cli.exit;
  await untilGone(child);
});

test("a demo that is killed while its guest runs on elsewhere leaves no process behind", async () => {
  await using cli = startCli(["demo", "--json", ...ENDLESS]);
  const child = await childOf(cli);
  await cli.waitFor("phase", ({ phase }) => phase === "commit");
  cli.kill("SIGKILL");
  await cli.exit;
  await untilGone(child);
});

test("a demo can be cancelled while its guest runs on elsewhere", async () => {
  await using cli = startCli(["demo", "--json", ...ENDLESS]);
  const child = await childOf(cli);
  await cli.waitFor("phase", ({ phase }) => phase === "commit");
  cli.kill("SIGINT");
  const exit = await cli.exit;
  expect(failureOf(exit).code).toBe("CANCELLED");
  expect(exit.status).toBe(1);
  await untilGone(child);
});

test("a demo whose other process is killed says what was lost", async () => {
  await using cli = startCli(["demo", "--json", ...SLOW]);
  const child = await childOf(cli);
  process.kill(child, "SIGKILL");
  const exit = await cli.exit;
  expect(failureOf(exit)).toMatchObject({ code: "CHANNEL_LOST", at: "source" });
  expect([exit.status, exit.stderr]).toEqual([1, ""]);
});

test("a demo whose reader leaves goes on and ends quietly", async () => {
  await using cli = startCli(["demo", ...SMALL]);
  cli.closeOutput();
  const { status, signal, stderr } = await cli.exit;
  expect([status, signal, stderr]).toEqual([0, null, ""]);
});

test("a demo that cannot fit is refused before it takes memory", async () => {
  const { status, events } = await runCli([
    "demo",
    "--json",
    "--size",
    "16MiB",
    "--working-set",
    "17MiB",
  ]);
  expect(status).toBe(2);
  expect(events).toHaveLength(1);
  expect(events[0]).toMatchObject({
    event: "failed",
    failure: {
      code: "CONFIGURATION_INVALID",
      facts: {
        problems: ["--working-set is 17.0 MiB: it must fit into --size, which is 16.0 MiB"],
      },
    },
  });
});

/** The demo's other process, as the demo itself names it. */
async function childOf(cli: Cli): Promise<number> {
  await cli.waitFor("phase", ({ phase }) => phase === "precopy");
  const parent = must(cli.processId, "it was started");
  const children = childrenOf(parent);
  expect(children).toHaveLength(1);
  return must(children[0], "it has one child");
}

function childrenOf(parent: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((id) => statusOf(id)?.parent === parent);
}

/** As `/proc` has it; undefined when there is no such process. */
function statusOf(id: number): { parent: number; isZombie: boolean } | undefined {
  try {
    const text = readFileSync(`/proc/${id}/status`, "utf8");
    return {
      parent: Number(/^PPid:\s*(\d+)/m.exec(text)?.[1]),
      isZombie: /^State:\s*Z/m.test(text),
    };
  } catch {
    return undefined;
  }
}

async function untilGone(id: number): Promise<void> {
  const deadline = new Deadline(20_000);
  // One that nobody has waited for yet has ended all the same.
  while (statusOf(id)?.isZombie === false && !deadline.passed) {
    await sleep(5);
  }
  expect(statusOf(id)?.isZombie ?? true).toBe(true);
}
