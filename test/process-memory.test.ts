import { execFileSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { expect, type TestContext, test } from "vitest";
import { MIB } from "../base/units.ts";
import { CliFolder, isSameFile } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { type Cli, type CliExit, startCli } from "./run-cli.ts";

/** More than the small file system holds, of which two thirds are not zero. */
const IMAGE_BYTES = 16 * MIB;
const SEED = 30;

/** Runs what follows where the folder is a file system of its own, which ends with it. */
function onTmpfs(folder: string, options: string, prepare = "true"): string[] {
  const mount = `mount -t tmpfs -o ${options} tmpfs '${folder}'`;
  return ["unshare", "-rm", "sh", "-c", `${mount} && ${prepare} && exec "$@"`, "sh"];
}

/** Where nobody may mount anything, the test is left out, and says so. */
function needsMounts(context: TestContext, folder: string): void {
  try {
    const [command = "", ...args] = [...onTmpfs(folder, "size=1m"), "true"];
    execFileSync(command, args, { stdio: "pipe" });
  } catch (error) {
    process.stderr.write(`\nNOT TESTED: "${context.task.name}" needs a mount: ${error}\n`);
    context.skip("a tmpfs cannot be mounted here");
  }
}

function receive(path: string, through: readonly string[] = []): Cli {
  const args = ["receive", "tcp:127.0.0.1:0", "--memory", `ram=file:${path}`, "--json"];
  return startCli(args, { through });
}

/** Sends the image there; returns how both ended. */
async function sendTo(
  destination: Cli,
  image: string,
): Promise<{ left: CliExit; arrived: CliExit }> {
  const address = String((await destination.waitFor("listening"))["address"]);
  const args = ["send", address, "--memory", `ram=file:${image}`, "--channels", "2", "--json"];
  await using source = startCli(args);
  const [left, arrived] = await Promise.all([source.exit, destination.exit]);
  return { left, arrived };
}

/** Both say the same, and that it was the destination. */
function expectRefusal(
  exits: { left: CliExit; arrived: CliExit },
  failure: { code: string; facts: object },
): void {
  for (const exit of [exits.left, exits.arrived]) {
    expect(failureOf(exit)).toMatchObject({ ...failure, at: "destination" });
    expect(exit.status).toBe(1);
    expect(exit.stderr).toBe("");
  }
}

/** To a file that is not there yet. */
async function expectRetry(folder: CliFolder, image: string): Promise<void> {
  await using destination = receive(folder.at("retry.ram"));
  const { left, arrived } = await sendTo(destination, image);
  expect([left.status, arrived.status]).toEqual([0, 0]);
  expect(await isSameFile(image, folder.at("retry.ram"))).toBe(true);
}

test("a destination without room says so at both ends, and one with room takes the guest", async (context) => {
  using folder = new CliFolder();
  const small = folder.at("small");
  mkdirSync(small);
  needsMounts(context, small);
  const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
  copyFileSync(image, folder.at("copy.ram"));
  const path = `${small}/arrived.ram`;
  await using destination = receive(path, onTmpfs(small, "size=8m"));
  expectRefusal(await sendTo(destination, image), {
    code: "MEMORY_FULL",
    facts: { block: "ram", path },
  });
  expect(await isSameFile(image, folder.at("copy.ram"))).toBe(true);
  await expectRetry(folder, image);
});

test("a file that is there and has no room for what is written to it counts as full", async (context) => {
  using folder = new CliFolder();
  const small = folder.at("small");
  mkdirSync(small);
  needsMounts(context, small);
  const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
  const path = `${small}/arrived.ram`;
  const prepare = `truncate -s ${IMAGE_BYTES} '${path}'`;
  await using destination = receive(path, onTmpfs(small, "size=8m", prepare));
  expectRefusal(await sendTo(destination, image), {
    code: "MEMORY_FULL",
    facts: { block: "ram", path },
  });
});

for (const [what, prepare] of [
  ["file on a file system", (path: string) => `truncate -s ${IMAGE_BYTES} '${path}'`],
  ["folder on a file system", () => "true"],
] as const) {
  test(`a ${what} that is read-only cannot take a guest`, async (context) => {
    using folder = new CliFolder();
    const locked = folder.at("locked");
    mkdirSync(locked);
    needsMounts(context, locked);
    const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
    const path = `${locked}/arrived.ram`;
    const script = `${prepare(path)} && mount -o remount,ro '${locked}'`;
    await using destination = receive(path, onTmpfs(locked, "size=32m", script));
    const exits = await sendTo(destination, image);
    expectRefusal(exits, { code: "MEMORY_UNUSABLE", facts: { block: "ram", path } });
    expect(failureOf(exits.left).message).toContain("read-only file system");
  });
}

for (const [words, bytes] of [
  ["smaller", IMAGE_BYTES - 4096],
  ["larger", IMAGE_BYTES + 4096],
  ["empty", 0],
] as const) {
  test(`a file that is ${words} is refused and stays as it was`, async () => {
    using folder = new CliFolder();
    const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
    const path = folder.at("arrived.ram");
    writeFileSync(path, "what was there before");
    truncateSync(path, bytes);
    const before = readFileSync(path);
    await using destination = receive(path);
    const reason = `it has ${bytes} bytes and needs ${IMAGE_BYTES}`;
    expectRefusal(await sendTo(destination, image), {
      code: "MEMORY_UNUSABLE",
      facts: { block: "ram", path, reason },
    });
    expect(readFileSync(path).equals(before)).toBe(true);
    await expectRetry(folder, image);
  });
}

test("a source that is killed leaves no file at the destination, and can come again", async () => {
  // Where guest memory lies, if there is such a place.
  using memory = new CliFolder(existsSync("/dev/shm") ? "/dev/shm" : tmpdir());
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
  await using destination = receive(memory.at("arrived.ram"));
  const address = String((await destination.waitFor("listening"))["address"]);
  const args = ["send", address, "--memory", `ram=file:${image}`, "--max-bandwidth", "1MiB/s"];
  await using source = startCli([...args, "--json"]);
  await destination.waitFor("phase", ({ phase }) => phase === "receive");
  expect(memory.names()).toEqual(["arrived.ram"]);
  source.kill("SIGKILL");
  expect(failureOf(await destination.exit)).toMatchObject({ code: "CHANNEL_LOST" });
  expect(memory.names()).toEqual([]);
  await expectRetry(folder, image);
});

test("a folder, or a place in a folder that is missing, is no memory", async () => {
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: MIB, seed: SEED });
  for (const [path, reason] of [
    [folder.path, "not a regular file"],
    [folder.at("missing/arrived.ram"), "no such file or directory"],
    [`${image}/arrived.ram`, "not a directory"],
  ] as const) {
    await using destination = receive(path);
    const exits = await sendTo(destination, image);
    expectRefusal(exits, { code: "MEMORY_UNUSABLE", facts: { block: "ram", path } });
    expect(failureOf(exits.left).message).toContain(reason);
  }
});
