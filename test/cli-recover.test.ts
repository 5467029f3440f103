import { once } from "node:events";
import { statSync } from "node:fs";
import { connect, createServer } from "node:net";
import { expect, onTestFinished, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { asMigrationError, MigrationError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { askControl, openControl, pleaOf } from "../cli/control-socket.ts";
import { chooseOutput } from "../cli/output.ts";
import { controlled } from "../cli/recover.ts";
import { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import type { Report } from "../engine/statistics.ts";
import { CliFolder, isSameFile } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { FakeQmp, GREETING } from "./harness/fake-qmp.ts";
import { seedFromEnvironment } from "./prng.ts";
import { type CliExit, runCli, startCli } from "./run-cli.ts";

const SEED = seedFromEnvironment();

test(`19: the demo is paused in post-copy, recovered by its control, and every page is right (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const control = folder.at("control");
  await using demo = startCli([
    // It is handed to the other process as text, however little it is.
    ...["demo", "--json", `--seed=${SEED}`, "--control", control, "--run-for", "0.0000001ms"],
    ...["--size", "16MiB", "--working-set", "12MiB", "--dirty-rate", "400MiB/s"],
    ...["--pattern", "stride", "--postcopy", "after-rounds=1", "--max-bandwidth", "4MiB/s"],
    ...["--downtime-limit", "1ms"],
  ]);
  await demo.waitFor("phase", ({ phase }) => phase === "postcopy");
  expect(await askControl(control, { do: "recover" })).toMatchObject({ event: "refused" });
  await askControl(control, { do: "pause" });
  await demo.waitFor("phase", ({ phase }) => phase === "postcopy-paused");
  const status = await runCli(["recover", control, "--status", "--json"]);
  expect(status.events.at(-1)).toMatchObject({
    event: "status",
    phase: "postcopy-paused",
    pausedFor: { code: "CANCELLED" },
  });
  expect(await askControl(control, { do: "recover", address: "unix:/nowhere" })).toMatchObject({
    event: "failed",
    failure: { code: "CONNECT_FAILED" },
  });
  expect(await askControl(control, { do: "recover", address: "nowhere" })).toMatchObject({
    event: "refused",
  });
  const { stdout, ...recovered } = await runCli(["recover", control]);
  expect([recovered.status, recovered.stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(/^recovered at tcp:/);
  const { events, stderr, status: ended } = await demo.exit;
  expect([ended, stderr]).toEqual([0, ""]);
  const last = must(events.at(-1), "it says how it ended");
  expect((last["report"] as Report).verified).toBe(true);
});

test(`post-copy begins when the control is told so, and not where it cannot (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const slow = [
    ...["demo", "--json", `--seed=${SEED}`, "--run-for", "50ms", "--downtime-limit", "1ms"],
    ...["--size", "16MiB", "--working-set", "12MiB", "--dirty-rate", "400MiB/s"],
    ...["--max-bandwidth", "4MiB/s", "--control"],
  ];
  const never = folder.at("never");
  await using other = startCli([...slow, never]);
  await other.waitFor("phase", ({ phase }) => phase === "precopy");
  const refused = await runCli(["recover", never, "--postcopy"]);
  expect([refused.status, refused.stderr]).toEqual([
    1,
    'It was refused: it is not in pre-copy, or its --postcopy is "never"\n',
  ]);
  other.kill("SIGTERM");

  const control = folder.at("control");
  await using demo = startCli([...slow, control, "--postcopy", "manual"]);
  await demo.waitFor("progress", ({ phase }) => phase === "precopy");
  const begun = await runCli(["recover", control, "--postcopy"]);
  expect([begun.status, begun.stderr]).toEqual([0, ""]);
  await demo.waitFor("phase", ({ phase }) => phase === "postcopy");
  // As the command asks, which may take longer to start than post-copy lasts.
  const again = await askControl(control, { do: "postcopy" });
  expect(again).toMatchObject({ event: "status", pausedFor: null });
  const { events, stderr, status } = await demo.exit;
  expect([status, stderr]).toEqual([0, ""]);
  const last = must(events.at(-1), "it says how it ended");
  expect((last["report"] as Report).verified).toBe(true);
});

/** Pre-copy lasts so long that a signal comes into it. */
const SLOWLY = [
  ...["demo", "--json", `--seed=${SEED}`, "--run-for", "50ms", "--downtime-limit", "1ms"],
  ...["--size", "16MiB", "--working-set", "12MiB", "--dirty-rate", "400MiB/s"],
  ...["--max-bandwidth", "8MiB/s"],
];

test(`post-copy begins by SIGUSR1, which may come twice, and every page is right (SEED=${SEED})`, async () => {
  await using demo = startCli([...SLOWLY, "--postcopy", "manual"]);
  await demo.waitFor("progress", ({ phase }) => phase === "precopy");
  demo.kill("SIGUSR1");
  await demo.waitFor("phase", ({ phase }) => phase === "postcopy");
  demo.kill("SIGUSR1");
  const { events, stderr, status } = await demo.exit;
  // Node itself would open a debugger, and say so.
  expect([status, stderr]).toEqual([0, ""]);
  const { verified, faults } = must(events.at(-1), "it says how it ended")["report"] as Report;
  expect(verified).toBe(true);
  expect(faults?.count).toBeGreaterThan(0);
});

test(`SIGUSR1 is passed over where post-copy cannot begin (SEED=${SEED})`, async () => {
  const limits = ["--max-rounds", "2", "--non-convergence", "switch-over"];
  await using demo = startCli([...SLOWLY, ...limits]);
  await demo.waitFor("progress", ({ phase }) => phase === "precopy");
  demo.kill("SIGUSR1");
  const { events, stderr, status } = await demo.exit;
  expect([status, stderr]).toEqual([0, ""]);
  expect(events.map(({ phase }) => phase)).not.toContain("postcopy");
  const report = must(events.at(-1), "it says how it ended")["report"] as Report;
  expect([report.verified, report.faults]).toEqual([true, undefined]);
});

test(`send hears SIGUSR1, though a guest in a file cannot go over (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: 4 * MIB, seed: SEED });
  const memory = `ram=file:${folder.at("arrived.ram")}`;
  await using receive = startCli(["receive", "tcp:127.0.0.1:0", "--memory", memory, "--json"]);
  const address = String((await receive.waitFor("listening"))["address"]);
  const slowly = ["--max-bandwidth", "2MiB/s", "--json"];
  await using send = startCli(["send", address, "--memory", `ram=file:${image}`, ...slowly]);
  await send.waitFor("phase", ({ phase }) => phase === "precopy");
  send.kill("SIGUSR1");
  const ends = await Promise.all([send.exit, receive.exit]);
  expect(ends.map(({ status, stderr }) => [status, stderr])).toEqual([
    [0, ""],
    [0, ""],
  ]);
});

test(`files cannot be a destination of post-copy: both commands say why, nothing is left, and without it they move (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: MIB, seed: SEED });
  const move = async (...flags: string[]): Promise<CliExit[]> => {
    const memory = `ram=file:${folder.at("arrived.ram")}`;
    await using receive = startCli(["receive", "tcp:127.0.0.1:0", "--memory", memory, "--json"]);
    const address = String((await receive.waitFor("listening"))["address"]);
    const send = await runCli([
      "send",
      address,
      "--memory",
      `ram=file:${image}`,
      ...flags,
      "--json",
    ]);
    return [send, await receive.exit];
  };
  const refused = await move("--postcopy", "after-rounds=1");
  for (const { status, stderr } of refused) expect([status, stderr]).toEqual([1, ""]);
  for (const failure of refused.map(failureOf)) {
    expect(failure).toMatchObject({
      code: "POSTCOPY_UNSUPPORTED",
      message: expect.stringContaining("this host cannot let its guest wait for pages"),
      advice: expect.stringContaining("Choose postcopy never"),
      at: "destination",
    });
  }
  expect(folder.names()).toEqual(["source.ram"]);
  // Files that somebody writes are refused by the rules of legality, before anybody is reached.
  const written = ["--dirty-log", "scan", "--postcopy", "after-rounds=1"];
  const nowhere = ["send", "tcp:127.0.0.1:1", "--memory", `ram=file:${image}`];
  const illegal = await runCli([...nowhere, ...written, "--json"]);
  expect([illegal.status, failureOf(illegal).code]).toEqual([2, "CONFIGURATION_INVALID"]);
  expect(failureOf(illegal).message).toContain("a scan knows only after reading all memory");
  const moved = await move();
  for (const { status, stderr } of moved) expect([status, stderr]).toEqual([0, ""]);
  expect(await isSameFile(image, folder.at("arrived.ram"))).toBe(true);
});

test("SIGUSR1 means nothing to a destination, and opens no debugger", async () => {
  using folder = new CliFolder();
  const memory = ["--memory", `ram=file:${folder.at("arrived.ram")}`];
  await using destination = startCli(["receive", "tcp:127.0.0.1:0", ...memory, "--json"]);
  await destination.waitFor("listening");
  destination.kill("SIGUSR1");
  destination.kill("SIGTERM");
  const exit = await destination.exit;
  expect([failureOf(exit).code, exit.stderr]).toEqual(["CANCELLED", ""]);
});

test("a control takes one short line of what it knows, and harms nobody with anything else", async () => {
  using folder = new CliFolder();
  const path = folder.at("control");
  const recovery = new PostcopyRecovery();
  const broken = new MigrationError("CHANNEL_LOST", { channel: 0, reason: "it was cut" });
  let pauses = 0;
  recovery.attach({
    pausedFor: () => broken,
    recover: async (address) => {
      if (address === undefined) throw broken;
      return address;
    },
    pause: () => {
      pauses += 1;
    },
    giveUp() {},
  });
  await using _control = await openControl(path, { recovery, phase: () => "postcopy-paused" });
  expect(statSync(path).mode & 0o777).toBe(0o600);
  for (const garbage of [
    "\0\xff\n",
    "{}\n",
    "null\n",
    "[1]\n",
    '{"do":"fly"}\n',
    "x".repeat(9000),
  ]) {
    expect(JSON.parse(await saidTo(path, garbage))).toMatchObject({ event: "refused" });
  }
  expect(await saidTo(path, '{"do":"pause"')).toContain("without a line");
  const silent = Array.from({ length: 20 }, () => connect({ path }).on("error", () => {}));
  await Promise.all(silent.slice(8).map(closed));
  for (const socket of silent) socket.destroy();
  await Promise.all(silent.slice(0, 8).map(closed));
  await expect
    .poll(() => askControl(path, { do: "status" }).catch(() => null))
    .toEqual({ event: "status", phase: "postcopy-paused", pausedFor: broken.toJSON() });
  expect(pauses).toBe(0);
  await askControl(path, { do: "pause" });
  expect(pauses).toBe(1);
  expect(await askControl(path, { do: "recover" })).toMatchObject({
    event: "failed",
    failure: { code: "CHANNEL_LOST" },
  });
  const address = "tcp:10.0.0.1:4444";
  expect(await askControl(path, { do: "recover", address })).toEqual({
    event: "recovered",
    address,
  });
  const second = openControl(path, { recovery, phase: () => "" }).catch(asMigrationError);
  expect(await second).toMatchObject({ code: "ADDRESS_UNUSABLE" });
});

test("a pause is refused where there is no post-copy to break off", async () => {
  using folder = new CliFolder();
  const path = folder.at("control");
  const recovery = new PostcopyRecovery();
  let phase = "precopy";
  await using _control = await openControl(path, { recovery, phase: () => phase });
  const early = await runCli(["recover", path, "--pause"]);
  expect([early.status, early.stderr]).toEqual([1, "It was refused: it is not in post-copy\n"]);
  for (phase of ["postcopy", "postcopy-recover", "postcopy-paused"]) {
    expect(await askControl(path, { do: "pause" })).toMatchObject({ event: "status", phase });
  }
});

test("why a recovery failed is told whole, and at which end", async () => {
  using folder = new CliFolder();
  const path = folder.at("control");
  const recovery = new PostcopyRecovery();
  const address = `exec:${"x".repeat(3900)}`;
  const facts = { address, reason: "it ended" };
  recovery.attach({
    pausedFor: () => null,
    recover: () =>
      Promise.reject(new MigrationError("CONNECT_FAILED", facts, { at: "destination" })),
    pause() {},
    giveUp() {},
  });
  await using _control = await openControl(path, { recovery, phase: () => "postcopy-paused" });
  expect(await askControl(path, { do: "recover", address })).toMatchObject({
    event: "failed",
    failure: { code: "CONNECT_FAILED", facts },
  });
  const { status, stderr } = await runCli(["recover", path, address]);
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /^CONNECT_FAILED \(at the destination\): Cannot connect to "exec:x+": it ended\n/,
  );
});

test("a failure that only another version knows is told in its own words", async () => {
  using folder = new CliFolder();
  const path = folder.at("control");
  const failure = { code: "TAPE_TORN", message: "Cannot rewind: it is torn\u001b[2J" };
  const server = createServer((socket) =>
    socket.end(`${JSON.stringify({ event: "failed", failure })}\n`),
  );
  onTestFinished(() => void server.close());
  await once(server.listen({ path }), "listening");
  const { status, stderr } = await runCli(["recover", path]);
  expect([status, stderr]).toEqual([1, "TAPE_TORN: Cannot rewind: it is torn?[2J\n"]);
});

test("what the other host said of a pause cannot steer the terminal", async () => {
  using folder = new CliFolder();
  const path = folder.at("control");
  const facts = { action: "resume", reason: "no\u001b[2J\u0007" };
  const said = new MigrationError("HOST_FAILED", facts, { at: "destination" });
  const written = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  onTestFinished(() => written.mockRestore());
  await using control = await controlled(path, chooseOutput({ json: false, side: "source" }));
  control.recovery.attach({
    pausedFor: () => said,
    recover: () => Promise.reject(said),
    pause() {},
    giveUp() {},
  });
  control.onPhase("postcopy-paused");
  const noted = written.mock.calls.map(([text]) => String(text)).join("");
  written.mockRestore();
  const status = await runCli(["recover", path, "--status"]);
  for (const text of [noted, status.stdout]) {
    expect(text).toContain("Cannot resume: the host failed: no?[2J?");
    expect(text).not.toContain("\u001b");
  }
});

test("what is a plea, and what is none", () => {
  expect(pleaOf('{"do":"recover","address":"unix:x"}')).toEqual({
    do: "recover",
    address: "unix:x",
  });
  for (const line of [
    '{"do":"recover","address":1}',
    '{"do":"pause","address":"a"}',
    '{"do":"status","x":1}',
  ]) {
    expect(() => pleaOf(line)).toThrow(RangeError);
  }
});

test("without anybody at the control it fails; what contradicts itself is wrong usage", async () => {
  using folder = new CliFolder();
  const nobody = await runCli(["recover", folder.at("control"), "--json"]);
  expect([nobody.status, failureOf(nobody).code]).toEqual([1, "CONNECT_FAILED"]);
  const both = await runCli(["recover", "x", "--status", "--pause", "--json"]);
  expect([both.status, failureOf(both).code]).toEqual([2, "CONFIGURATION_INVALID"]);
});

test("a program that is no multifd is not taken for a control", async () => {
  for (const greeting of [`${JSON.stringify(GREETING)}\r\n`, "null\n", "220 welcome\r\n"]) {
    await using monitor = await FakeQmp.start(() => {}, greeting);
    await expect(askControl(monitor.path, { do: "status" })).rejects.toMatchObject({
      code: "CONNECT_FAILED",
      facts: { reason: "what answers there is no multifd" },
    });
  }
});

/** What is answered to these bytes, after which this end says nothing more. */
async function saidTo(path: string, bytes: string): Promise<string> {
  const socket = connect({ path, allowHalfOpen: true });
  socket.on("error", () => {});
  socket.end(bytes);
  let answer = "";
  socket.setEncoding("utf8").on("data", (text: string) => {
    answer += text;
  });
  await closed(socket);
  return answer;
}

async function closed(socket: ReturnType<typeof connect>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  if (socket.closed) resolve();
  socket.once("close", () => resolve()).resume();
  await promise;
}
