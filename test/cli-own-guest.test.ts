import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import { askControl } from "../cli/control-socket.ts";
import type { Report } from "../engine/statistics.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import { addressOf, untilIn } from "./fixtures/cli-live-pair.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { HoldingRelay } from "./fixtures/cli-relay.ts";
import { seedFromEnvironment } from "./prng.ts";
import { type Cli, type CliExit, runCli, startCli } from "./run-cli.ts";

const SEED = seedFromEnvironment();

function startReceive(...flags: readonly string[]): Cli {
  return startCli(["receive", "tcp:127.0.0.1:0", "--memory-guest", "--json", ...flags]);
}

function startSend(address: string, ...flags: readonly string[]): Cli {
  return startCli([
    ...["send", address, "--memory-guest", `--seed=${SEED % 2 ** 32}`, "--size", "16MiB"],
    ...["--working-set", "12MiB", "--pattern", "stride", "--json"],
    // However busy the machine is.
    ...["--max-rounds", "3", "--non-convergence", "switch-over"],
    ...flags,
  ]);
}

/** At the destination. */
const BRIEFLY = ["--run-for", "50ms"];

/** Pre-copy lasts so long that there is time to do something meanwhile. */
const SLOWLY = [
  ...["--max-bandwidth", "4MiB/s", "--downtime-limit", "1ms"],
  ...["--dirty-rate", "400MiB/s"],
];

function reportOf({ events }: CliExit): Report {
  const { event, report } = must(events.at(-1), "it says how it ended");
  expect(event).toBe("completed");
  return report as Report;
}

function notesOf({ events }: CliExit): unknown[] {
  return events.filter(({ event }) => event === "note").map(({ text }) => text);
}

const CHECKED = /^it wrote [1-9]\d* pages here; every page was checked$/;

test(`multifd's own guest moves from one command to the other, and is checked there (SEED=${SEED})`, async () => {
  await using receive = startReceive("--vcpus", "3", ...BRIEFLY);
  await using send = startSend(await addressOf(receive), "--vcpus", "3", "--compression", "auto");
  const [left, arrived] = await Promise.all([send.exit, receive.exit]);
  expect([left.status, left.stderr, arrived.status, arrived.stderr]).toEqual([0, "", 0, ""]);
  expect([reportOf(left).verified, reportOf(arrived).verified]).toEqual([undefined, true]);
  expect(notesOf(arrived).at(-1)).toMatch(CHECKED);
  expect(reportOf(arrived).guestBytes).toBe(16 * 2 ** 20);
});

test(`post-copy begins by SIGUSR1 to send, its link breaks, and recover brings the guest over whole (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const controls = [folder.at("source"), folder.at("destination")] as const;
  await using receive = startReceive("--control", controls[1], ...BRIEFLY);
  const target = await addressOf(receive);
  await using relay = await HoldingRelay.start({ target, hold: null, whenSenderGoes: "drop" });
  const postcopy = ["--postcopy", "manual", "--control", controls[0]];
  await using send = startSend(relay.address, ...SLOWLY, ...postcopy);
  await send.waitFor("progress", ({ phase }) => phase === "precopy");
  send.kill("SIGUSR1");
  await Promise.all([untilIn(send, "postcopy"), untilIn(receive, "postcopy")]);
  relay.cut();
  await Promise.all([untilIn(send, "postcopy-paused"), untilIn(receive, "postcopy-paused")]);

  // Another way between the hosts, which the destination did not listen at before.
  const other = await askControl(controls[1], { do: "recover", address: "tcp:127.0.0.1:0" });
  const recovered = await runCli([
    "recover",
    controls[0],
    other.event === "recovered" ? other.address : "",
    "--json",
  ]);
  expect([recovered.status, recovered.stderr]).toEqual([0, ""]);

  const [left, arrived] = await Promise.all([send.exit, receive.exit]);
  expect([left.status, left.stderr, arrived.status, arrived.stderr]).toEqual([0, "", 0, ""]);
  const { verified, faults } = reportOf(arrived);
  expect([verified, faults?.count]).toEqual([true, expect.any(Number)]);
  expect(notesOf(arrived).at(-1)).toMatch(CHECKED);
});

test(`a guest that cannot leave runs on where it was, and is checked there (SEED=${SEED})`, async () => {
  await using receive = startReceive();
  await using send = startSend(await addressOf(receive), ...SLOWLY);
  await send.waitFor("progress", ({ phase }) => phase === "precopy");
  receive.kill("SIGTERM");
  const [stayed, refused] = await Promise.all([send.exit, receive.exit]);
  expect([stayed.status, refused.status]).toEqual([1, 1]);
  expect(failureOf(stayed)).toMatchObject({ code: "CANCELLED", at: "destination" });
  expect(notesOf(stayed)).toEqual(["the guest ran on here; every page was checked"]);
});

test("an interrupt ends the check of a guest that has arrived, and says that it was not made", async () => {
  await using receive = startReceive("--run-for", "10min");
  await using send = startSend(await addressOf(receive));
  expect((await send.exit).status).toBe(0);
  await receive.waitFor(
    "note",
    ({ text }) => text === "the guest runs here for 10.0 min and is then checked",
  );
  receive.kill("SIGINT");
  const ended = await receive.exit;
  expect(ended.status).toBe(1);
  expect(failureOf(ended)).toMatchObject({
    code: "CANCELLED",
    facts: { phase: "verify" },
    advice: expect.stringContaining("unless it has arrived"),
  });
});

test(`an interrupt in post-copy comes too late: the guest arrives and is checked (SEED=${SEED})`, async () => {
  await using receive = startReceive(...BRIEFLY);
  await using send = startSend(await addressOf(receive), ...SLOWLY, "--postcopy", "manual");
  await send.waitFor("progress", ({ phase }) => phase === "precopy");
  send.kill("SIGUSR1");
  await Promise.all([untilIn(send, "postcopy"), untilIn(receive, "postcopy")]);
  for (const end of [send, receive]) end.kill("SIGTERM");
  const [left, arrived] = await Promise.all([send.exit, receive.exit]);
  expect([left.status, left.stderr, arrived.status, arrived.stderr]).toEqual([0, "", 0, ""]);
  expect(reportOf(arrived).verified).toBe(true);
});

test(`files take no guest in that is more than memory, nor does that guest's host take files (SEED=${SEED})`, async () => {
  using folder = new CliFolder();
  const memory = `ram=file:${folder.image("ram", { bytes: MIB, seed: SEED })}`;
  await using files = startCli(["receive", "tcp:127.0.0.1:0", "--memory", memory, "--json"]);
  await using own = startReceive();
  await using toFiles = startSend(await addressOf(files));
  await using toOwn = startCli(["send", await addressOf(own), "--memory", memory, "--json"]);
  for (const exit of await Promise.all([toFiles.exit, files.exit, toOwn.exit, own.exit])) {
    expect(exit.status).toBe(1);
    expect(failureOf(exit)).toMatchObject({
      code: "GUEST_MISMATCH",
      at: "destination",
      message: expect.stringContaining("its own kind of host"),
    });
  }
});
