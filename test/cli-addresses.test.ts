import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import { CliFolder, isSameFile } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { Meeting, socketPairs } from "./fixtures/cli-sockets.ts";
import { type Cli, type CliOptions, runCli, startCli } from "./run-cli.ts";

const IMAGE_BYTES = 6 * MIB;
const BRIDGE = fileURLToPath(new URL("fixtures/cli-bridge.ts", import.meta.url));

/** Through a command of its own for each channel. */
function bridgeTo(path: string): string {
  return `exec:exec '${process.execPath}' '${BRIDGE}' '${path}'`;
}

function receive(folder: CliFolder, address: string, options: CliOptions = {}): Cli {
  return startCli(
    ["receive", address, "--memory", `ram=file:${folder.at("new-ram")}`, "--json"],
    options,
  );
}

function send(folder: CliFolder, address: string, options: CliOptions = {}): Cli {
  const image = folder.image("ram", { bytes: IMAGE_BYTES, seed: 50 });
  return startCli(
    ["send", address, "--memory", `ram=file:${image}`, "--channels", "2", "--json"],
    options,
  );
}

async function addressOf(destination: Cli): Promise<string> {
  return String((await destination.waitFor("listening"))["address"]);
}

async function expectArrived(folder: CliFolder, source: Cli, destination: Cli): Promise<void> {
  const exits = await Promise.all([source.exit, destination.exit]);
  expect(exits.map(({ status, stderr }) => [status, stderr])).toEqual([
    [0, ""],
    [0, ""],
  ]);
  expect(await isSameFile(folder.at("ram"), folder.at("new-ram"))).toBe(true);
}

test("tcp: any port is taken where it is 0, and told", async () => {
  using folder = new CliFolder();
  await using destination = receive(folder, "tcp:localhost:0");
  const address = await addressOf(destination);
  expect(address).toMatch(/^tcp:localhost:[1-9]\d*$/);
  await using source = send(folder, address);
  await expectArrived(folder, source, destination);
});

test("tcp: a port that is taken is told", async () => {
  using folder = new CliFolder();
  await using destination = receive(folder, "tcp:127.0.0.1:0");
  const address = await addressOf(destination);
  await using second = receive(folder, address);
  const exit = await second.exit;
  expect(failureOf(exit)).toMatchObject({ code: "ADDRESS_UNUSABLE", at: "destination" });
  await using source = send(folder, address);
  await expectArrived(folder, source, destination);
});

test("unix: a path is a socket while somebody listens there, and gone after", async () => {
  using folder = new CliFolder();
  const address = `unix:${folder.at("socket")}`;
  await using destination = receive(folder, address);
  expect(await addressOf(destination)).toBe(address);
  await using source = send(folder, address);
  await expectArrived(folder, source, destination);
  expect(existsSync(folder.at("socket"))).toBe(false);
});

test("unix: a relative path counts from where the command runs", async () => {
  using folder = new CliFolder();
  await using destination = receive(folder, "unix:socket", { cwd: folder.path });
  await destination.waitFor("listening");
  await using source = send(folder, `unix:${folder.at("socket")}`);
  await expectArrived(folder, source, destination);
});

test("unix: a socket that is left over is told as such, one in use is not disturbed", async () => {
  using folder = new CliFolder();
  const address = `unix:${folder.at("socket")}`;
  await using killed = receive(folder, address);
  await killed.waitFor("listening");
  killed.kill("SIGKILL");
  await killed.exit;
  const args = ["receive", address, "--memory", `ram=file:${folder.at("other")}`, "--json"];
  expect(failureOf(await runCli(args))).toMatchObject({
    code: "ADDRESS_UNUSABLE",
    facts: {
      address,
      reason: "a socket is left there from a process that has ended: remove it",
    },
    at: "destination",
  });

  const inUse = `unix:${folder.at("other-socket")}`;
  await using destination = receive(folder, inUse);
  await destination.waitFor("listening");
  const told = failureOf(await runCli(["receive", inUse, ...args.slice(2)]));
  expect(told.facts).toEqual({ address: inUse, reason: "somebody listens there already" });
  await using source = send(folder, inUse);
  await expectArrived(folder, source, destination);
});

for (const kind of ["tcp", "unix"] as const) {
  test(`fd: both ends inherit connected ${kind} sockets, one for each channel`, async () => {
    using folder = new CliFolder();
    const place = kind === "tcp" ? { port: 0 } : { path: folder.at("socket") };
    const pairs = await socketPairs(3, place);
    await using destination = receive(folder, "fd:3,4,5", { descriptors: pairs.right });
    await using source = send(folder, "fd:3,4,5", { descriptors: pairs.left });
    pairs[Symbol.dispose](); // They live in the two processes only.
    expect(await addressOf(destination)).toBe("fd:3,4,5");
    await expectArrived(folder, source, destination);
  });
}

test("fd: a destination whose other end is closed gives up, for nobody else can come", async () => {
  using folder = new CliFolder();
  const pairs = await socketPairs(3, { path: folder.at("socket") });
  await using destination = receive(folder, "fd:3,4,5", { descriptors: pairs.right });
  await addressOf(destination);
  pairs[Symbol.dispose]();
  const exit = await destination.exit;
  expect(failureOf(exit)).toMatchObject({ code: "CHANNEL_LOST", at: "destination" });
  expect(exit.status).toBe(1);
});

test("exec: a source reaches a destination through a command for each channel", async () => {
  using folder = new CliFolder();
  const path = folder.at("socket");
  await using destination = receive(folder, `unix:${path}`);
  await destination.waitFor("listening");
  await using source = send(folder, bridgeTo(path));
  await expectArrived(folder, source, destination);
});

test("exec: both ends may start commands that meet somewhere", async () => {
  using folder = new CliFolder();
  await using _meeting = await Meeting.at(folder.at("one"), folder.at("other"));
  const address = bridgeTo(folder.at("other"));
  await using destination = receive(folder, address);
  expect(await addressOf(destination)).toBe(address);
  await using source = send(folder, bridgeTo(folder.at("one")));
  await expectArrived(folder, source, destination);
});
