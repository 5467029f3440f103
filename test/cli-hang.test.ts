import { spawnSync } from "node:child_process";
import { renameSync } from "node:fs";
import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import { askControl } from "../cli/control-socket.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import { addressOf } from "./fixtures/cli-live-pair.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { HoldingRelay } from "./fixtures/cli-relay.ts";
import { seedFromEnvironment } from "./prng.ts";
import { startCli } from "./run-cli.ts";

const SEED = seedFromEnvironment();

/** They come some times per second, for as long as it hangs. */
const REPORTS = 3;

test(`a command whose disk hangs tells its progress and status, is cancelled, and ends (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: 4 * MIB, seed: SEED });
  const received = `ram=file:${folder.at("destination.ram")}`;
  await using destination = startCli([
    "receive",
    "tcp:127.0.0.1:0",
    "--memory",
    received,
    "--json",
  ]);
  const target = await addressOf(destination);
  await using relay = await HoldingRelay.start({
    target,
    hold: "welcome",
    whenSenderGoes: "drop",
  });
  const control = folder.at("control");
  const memory = ["--memory", `ram=file:${image}`];
  await using source = startCli(["send", relay.address, ...memory, "--control", control, "--json"]);
  await relay.holding;
  // The file was looked at. Now it is on a disk that does not answer: opening a pipe without a
  // writer hangs in the kernel, for the threads that reach for it.
  const pipe = folder.at("pipe");
  expect(spawnSync("mkfifo", [pipe]).status).toBe(0);
  renameSync(pipe, image);
  relay.release();
  // It stays in this phase for as long as its threads hang, and says so.
  let told = 0;
  await source.waitFor("progress", ({ phase }) => {
    if (phase === "agree") told += 1;
    return told === REPORTS;
  });
  const status = { event: "status", phase: "agree", pausedFor: null };
  expect(await askControl(control, { do: "status" })).toEqual(status);
  source.kill("SIGINT");

  const left = await source.exit;
  expect(failureOf(left)).toMatchObject({ code: "CANCELLED", at: "source" });
  expect(left.status).toBe(1);
  expect(left.stderr).toBe("");
  const arrived = await destination.exit;
  expect(failureOf(arrived)).toMatchObject({ code: "CANCELLED", at: "source" });
  expect(arrived.status).toBe(1);
});
