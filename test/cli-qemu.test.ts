import { writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { FakeQemu } from "./harness/fake-qemu.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { runCli, startCli } from "./run-cli.ts";

const seed = seedFromEnvironment();

/** One with something in its memory, as every guest has that ever ran. */
async function startSource(): Promise<FakeQemu> {
  const fake = await FakeQemu.start();
  const memory = Buffer.alloc(2 ** 20);
  new Prng(seed).bytes(memory);
  writeFileSync(fake.ramPath("ram"), memory);
  return fake;
}

test("send and receive move a guest from QEMU to QEMU, and tell QEMU's view of it", async () => {
  await using from = await startSource();
  await using to = await FakeQemu.start({ runState: "inmigrate" });
  const receiving = ["receive", "tcp:127.0.0.1:0", "--qemu", to.path, "--json"];
  await using receive = startCli(receiving);
  const address = String((await receive.waitFor("listening"))["address"]);
  // Nobody can throttle a guest whose processors are nobody's threads.
  const sent = await runCli(["send", address, "--qemu", from.path, "--auto-converge", "--json"]);
  const received = await receive.exit;
  for (const { status, events, stdout } of [sent, received]) {
    expect(status, stdout).toBe(0);
    expect(events.at(-1)).toMatchObject({ event: "completed", report: { hypervisor: {} } });
  }
  expect(sent.events).toContainEqual({
    event: "note",
    text: "the guest is not throttled: QEMU's process cannot be seen from here",
  });
  expect([from.runState, to.runState]).toEqual(["postmigrate", "running"]);
});

test("a report and a failure tell what QEMU says", async () => {
  await using from = await startSource();
  await using to = await FakeQemu.start({ runState: "inmigrate" });
  await using receive = startCli(["receive", "tcp:127.0.0.1:0", "--qemu", to.path, "--json"]);
  const address = String((await receive.waitFor("listening"))["address"]);
  const { stdout } = await runCli(["send", address, "--qemu", from.path]);
  const unfolded = stdout.replace(/\s+/g, " ");
  expect(unfolded).toMatch(
    / hypervisor stood still for [^:]+: stop [^,]+, pages [^,]+, save [^,]+, load [^,]+, resume \d/,
  );

  await using back = await startSource();
  await using dying = await FakeQemu.start({ runState: "inmigrate" });
  dying.failsToLoad = true;
  await using second = startCli(["receive", "tcp:127.0.0.1:0", "--qemu", dying.path, "--json"]);
  const other = String((await second.waitFor("listening"))["address"]);
  const { stderr } = await runCli(["send", other, "--qemu", back.path]);
  expect(stderr).toMatch(/^HYPERVISOR_LOST \(at the destination\): Cannot go on/);
  expect(failureOf(await second.exit)).toMatchObject({
    code: "HYPERVISOR_LOST",
    leftover: expect.stringMatching(/^The destination's QEMU has ended, .*\.$/),
  });
  expect(back.runState).toBe("running");
});

test.for<[args: readonly string[], problem: RegExp]>([
  [
    ["--qemu", "/a", "--memory", "ram=file:/b"],
    /--memory is given, host must be files: it is qemu \(another host knows itself/,
  ],
  [["--qemu"], /--qemu needs a value: QMP_SOCKET/],
  [["--qemu", "/a", "--qemu", "/b"], /--qemu is given twice/],
  [
    ["--qemu", "/a", "--pause-command", "x", "--resume-command", "y"],
    /--pause-command is given, host must be files: .*\(other hosts stop their guests/,
  ],
  [
    ["--qemu", "/a", "--dirty-log", "none"],
    /dirtyLog must be scan: it is none \(unmodified, it tells/,
  ],
  [["--qemu", "/a", "--max-rounds", "1"], /--max-rounds/],
  [[], /--memory NAME=file:PATH is needed, once per block, or --qemu QMP_SOCKET/],
])("send %j is wrong usage", async ([args, problem]) => {
  const exit = await runCli(["send", "tcp:127.0.0.1:1", ...args, "--json"]);
  expect(exit.status).toBe(2);
  expect(failureOf(exit).message).toMatch(problem);
});

test("what is no monitor is told for both commands", async () => {
  for (const command of ["send", "receive"]) {
    const exit = await runCli([command, "tcp:127.0.0.1:1", "--qemu", "/nowhere/qmp", "--json"]);
    expect(exit.status).toBe(1);
    expect(failureOf(exit)).toMatchObject({
      code: "HYPERVISOR_UNREACHABLE",
      remedy: "reconfigure",
      at: command === "send" ? "source" : "destination",
    });
  }
});
