import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import type { Report } from "../engine/statistics.ts";
import { CliFolder, isSameFile } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { seedFromEnvironment } from "./prng.ts";
import { type Cli, type CliExit, runCli, startCli } from "./run-cli.ts";

const IMAGE_BYTES = 16 * MIB;
const WRITER = fileURLToPath(new URL("fixtures/cli-writer.ts", import.meta.url));
const seed = seedFromEnvironment();

/** A process that writes an image. */
class Writer {
  readonly image: string;
  readonly #process: ChildProcess;

  private constructor(image: string) {
    this.image = image;
    const stdio = ["ignore", "pipe", "inherit"] as const;
    this.#process = spawn(process.execPath, [WRITER, image, `${seed}`], { stdio: [...stdio] });
  }

  static async start(folder: CliFolder): Promise<Writer> {
    const writer = new Writer(folder.image("source.ram", { bytes: IMAGE_BYTES, seed }));
    await once(must(writer.#process.stdout, "it has an output"), "data");
    return writer;
  }

  get #pid(): number {
    return must(this.#process.pid, "it runs");
  }

  /** As docs/operating.md has it: a signal alone returns before the process has come to rest. */
  get pause(): string {
    const isResting = `grep -q '^State:.*stopped' /proc/${this.#pid}/status`;
    return `kill -STOP ${this.#pid} && until ${isResting}; do :; done`;
  }

  get resume(): string {
    return `kill -CONT ${this.#pid}`;
  }

  get isResting(): boolean {
    return /^State:.*stopped/m.test(readFileSync(`/proc/${this.#pid}/status`, "utf8"));
  }

  /** Returns when the image has been written since. */
  async writes(): Promise<void> {
    const { mtimeMs } = statSync(this.image);
    while (statSync(this.image).mtimeMs === mtimeMs) {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await ended;
  }
}

function receive(folder: CliFolder): Cli {
  const memory = `ram=file:${folder.at("target.ram")}`;
  return startCli(["receive", `unix:${folder.at("socket")}`, "--memory", memory, "--json"]);
}

async function send(folder: CliFolder, image: string, flags: readonly string[]): Promise<CliExit> {
  const memory = ["--memory", `ram=file:${image}`, "--dirty-log", "scan", "--channels", "2"];
  return await runCli(["send", `unix:${folder.at("socket")}`, ...memory, ...flags, "--json"]);
}

const PROMPTLY = ["--downtime-limit", "1ms", "--max-rounds", "3"];

test(`a file that a process keeps writing moves, and the writer rests when it has (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using writer = await Writer.start(folder);
  await using destination = receive(folder);
  await destination.waitFor("listening");
  const commands = ["--pause-command", writer.pause, "--resume-command", writer.resume];
  const flags = [...PROMPTLY, "--non-convergence", "switch-over", ...commands];
  const left = await send(folder, writer.image, flags);
  expect(left.status, left.stdout).toBe(0);
  expect((await destination.exit).status).toBe(0);
  expect(writer.isResting).toBe(true);
  expect(await isSameFile(writer.image, folder.at("target.ram"))).toBe(true);
  const { report } = must(left.events.at(-1), "it has said so") as unknown as { report: Report };
  const { rounds } = report;
  expect(rounds).toHaveLength(4);
  for (const { dirtyPages } of rounds) expect(dirtyPages).toBeGreaterThan(0);
});

test("without commands the file is read once more at the end, and nobody is stopped", async () => {
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed });
  await using destination = receive(folder);
  await destination.waitFor("listening");
  const left = await send(folder, image, []);
  expect(left.status, left.stdout).toBe(0);
  expect(left.events.at(-1)).toMatchObject({
    report: { rounds: [{ dirtyPages: 4096 }, { dirtyPages: 0 }, { dirtyPages: 0 }] },
  });
  await destination.exit;
  expect(await isSameFile(image, folder.at("target.ram"))).toBe(true);
});

for (const [how, command, failure] of [
  ["fails", "exit 3", { code: "HOST_FAILED", facts: { action: "pause the guest" } }],
  ["hangs", "sleep 1000", { code: "HOST_TIMEOUT", facts: { action: "pause the guest" } }],
] as const) {
  test(`where the command that pauses ${how}, the writer is let go on (SEED=${seed})`, async () => {
    using folder = new CliFolder();
    await using writer = await Writer.start(folder);
    await using destination = receive(folder);
    await destination.waitFor("listening");
    const pause = `echo $$ > ${folder.at("pid")}; ${writer.pause}; ${command}`;
    const commands = ["--pause-command", pause, "--resume-command", writer.resume];
    const flags = ["--step-timeout", "1s", "--non-convergence", "switch-over", ...commands];
    const left = await send(folder, writer.image, [...PROMPTLY, ...flags]);
    expect(left.status).toBe(1);
    expect(failureOf(left)).toMatchObject(failure);
    expect((await destination.exit).status).toBe(1);
    await writer.writes();
    expect(folder.has("target.ram")).toBe(false);
    // Nothing of the command is left.
    const pid = readFileSync(folder.at("pid"), "utf8").trim();
    expect(isRunning(pid)).toBe(false);
  });
}

test(`a guest that cannot be let go on is told, with what was tried (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using writer = await Writer.start(folder);
  await using destination = receive(folder);
  await destination.waitFor("listening");
  const commands = ["--pause-command", "exit 3", "--resume-command", "exit 4"];
  const flags = [...PROMPTLY, "--non-convergence", "switch-over", ...commands];
  const left = await send(folder, writer.image, flags);
  expect(failureOf(left)).toMatchObject({
    code: "GUEST_NOT_RESTORED",
    facts: { action: "resume the guest", reason: expect.stringContaining("status 4") },
  });
  await destination.exit;
});

/** A process that has ended but was not asked for its status does not run. */
function isRunning(pid: string): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
