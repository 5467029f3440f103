import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import { SOURCE_PHASES } from "../engine/source.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import {
  addressOf,
  expectArrival,
  expectCleanEnd,
  expectDiscarded,
  expectToMove,
  expectUnharmed,
  startGuestDestination,
  startGuestSource,
  tellToLeave,
} from "./fixtures/cli-live-pair.ts";
import { failureIn, failureOf } from "./fixtures/cli-outcome.ts";
import { attemptWith, passStep, SLOWLY, SOURCE_STOPS, stopAt } from "./fixtures/cli-phase-stops.ts";
import { Story } from "./fixtures/cli-story.ts";
import { seedFromEnvironment } from "./prng.ts";
import type { Cli } from "./run-cli.ts";

/**
 * The scenarios of QEMU's own migration tests that have a counterpart here, under their numbers in
 * the table of such and QEMU's names, each between two processes. Each is thin: what it touches has
 * tests of its own that go deeper. Those of post-copy are in files of their own.
 */
const seed = seedFromEnvironment();
const GUEST = { seed };

for (const kind of ["unix", "tcp"] as const) {
  test(`1: precopy/${kind}/plain: completed, memory is valid, one guest runs (SEED=${seed})`, async () => {
    using folder = new CliFolder();
    const address = kind === "tcp" ? "tcp:127.0.0.1:0" : `unix:${folder.at("socket")}`;
    await expectToMove({}, { guest: GUEST, address });
    expect(folder.names()).toEqual([]);
  });
}

test(`7: precopy/unix/xbzrle: completed after two rounds or more, and deltas were sent (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  // So slow that what the guest writes meanwhile is more than the downtime has time for.
  const parameters = {
    ...{ xbzrle: true, xbzrleCacheBytes: 32 * MIB, maxBandwidthBytesPerSecond: 64 * MIB },
    ...({ maxRounds: 4, downtimeLimitMs: 1, nonConvergence: "switch-over" } as const),
  };
  const address = `unix:${folder.at("socket")}`;
  const { source } = await expectToMove({ parameters }, { guest: GUEST, address });
  expect(source.rounds.length).toBeGreaterThanOrEqual(2);
  expect(source.pages.delta).toBeGreaterThan(0);
});

test(`11: multifd/tcp/plain/none: four channels share the pages (SEED=${seed})`, async () => {
  const { source } = await expectToMove({ parameters: { channels: 4 } }, { guest: GUEST });
  const bulk = source.channels.filter(({ lane }) => lane === "bulk");
  expect(bulk.length).toBe(4);
  for (const { sentBytes } of bulk) expect(sentBytes).toBeGreaterThan(0);
});

test(`14: multifd/tcp/plain/cancel: of 16 channels, then a second destination (SEED=${seed})`, async () => {
  // 32 threads take a while to start on a busy machine.
  const parameters = { channels: 16, connectTimeoutMs: 20_000 };
  await using destination = startGuestDestination();
  await using source = startGuestSource("", GUEST);
  const story = new Story(source);
  tellToLeave(source, await addressOf(destination), { parameters: { ...SLOWLY, ...parameters } });
  await story.phase("precopy");
  source.kill("SIGTERM");
  expect(await expectUnharmed(story)).toMatchObject({ code: "CANCELLED", at: "source" });
  const left = await expectDiscarded(destination);
  expect(failureOf(left)).toMatchObject({ code: "CANCELLED", at: "source" });

  await using second = startGuestDestination();
  tellToLeave(source, await addressOf(second), { parameters });
  const { source: report } = await expectArrival(source, second, story);
  expect(report.channels.filter(({ lane }) => lane === "bulk")).toHaveLength(16);
});

test(`15: cancel/src/after/none: a cancel before the beginning touches nothing (SEED=${seed})`, async () => {
  await using destination = startGuestDestination();
  await using source = startGuestSource("", GUEST);
  const story = new Story(source);
  tellToLeave(source, await addressOf(destination), { isCancelled: true });
  const failed = await source.waitFor("failed");
  expect(failureIn(failed).code).toBe("CANCELLED");
  expect(failed["calls"]).toEqual([]);
  await expectUnharmed(story);
  // Nobody has told the destination anything.
  tellToLeave(source, await addressOf(destination));
  await expectArrival(source, destination, story);
});

/** QEMU's states, and the phases here in which a migration is in them. */
const STATES = {
  setup: ["connect", "agree"],
  active: ["precopy"],
  "pre-switchover": ["pause", "rest", "devices", "ready"],
} as const;

for (const [state, phases] of Object.entries(STATES)) {
  test(`15: cancel/src/after/${state}: the guest runs on, and a retry succeeds (SEED=${seed})`, async () => {
    await using source = startGuestSource("", GUEST);
    const story = new Story(source);
    for (const phase of phases) await expectCancelIn(phase, source, story);
    await expectArrivalAnew(source, story);
  });
}

/** The source is kept in the phase until it is cancelled there. */
async function expectCancelIn(
  phase: keyof typeof SOURCE_STOPS,
  source: Cli,
  story: Story,
): Promise<void> {
  const stop = SOURCE_STOPS[phase];
  const { step } = stop;
  await using destination = startGuestDestination();
  const target = await addressOf(destination);
  await using relay = await stopAt(stop, target);
  tellToLeave(source, relay?.address ?? target, attemptWith(stop));
  if (step !== undefined) await story.next("holding");
  passStep(stop, relay, source);
  if (story.phases.at(-1) !== phase) await story.phase(phase);
  await relay?.holding;
  source.kill("SIGTERM");
  // A step that is held does not keep it from being cancelled.
  const failure = await expectUnharmed(story, () => source.tell("go on"));
  expect(failure).toMatchObject({ code: "CANCELLED", facts: { phase } });
  // One whose WELCOME never came has not begun either.
  if (phase === "connect") return;
  const left = await expectDiscarded(destination);
  expect(failureOf(left)).toMatchObject({ code: "CANCELLED", at: "source" });
}

async function expectArrivalAnew(source: Cli, story: Story): Promise<void> {
  await using destination = startGuestDestination();
  tellToLeave(source, await addressOf(destination));
  await expectArrival(source, destination, story);
}

test(`15: cancel/src/after/cancelling: a second cancel changes nothing (SEED=${seed})`, async () => {
  await using destination = startGuestDestination();
  await using source = startGuestSource("", GUEST);
  const story = new Story(source);
  tellToLeave(source, await addressOf(destination), { hold: ["saveDevices", "resume"] });
  await story.next("holding");
  source.kill("SIGTERM");
  // As the first one is being carried out.
  expect(await story.next("holding")).toMatchObject({ step: "resume" });
  source.kill("SIGTERM");
  source.tell("go on");
  expect(await expectUnharmed(story)).toMatchObject({ code: "CANCELLED", at: "source" });
  expect(failureOf(await expectDiscarded(destination)).code).toBe("CANCELLED");
  source.kill("SIGTERM"); // And when it is over: cancel/src/after/cancelled.
  await expectArrivalAnew(source, story);
});

test(`15: cancel/src/after/completed: it comes too late, the guest stays there (SEED=${seed})`, async () => {
  await using destination = startGuestDestination();
  await using source = startGuestSource("", GUEST);
  tellToLeave(source, await addressOf(destination));
  await source.waitFor("completed");
  source.kill("SIGTERM");
  await expectArrival(source, destination);
});

test(`15: cancel/src/after/failed: the guest runs on as it did (SEED=${seed})`, async () => {
  await using destination = startGuestDestination();
  await using source = startGuestSource("", GUEST);
  const story = new Story(source);
  tellToLeave(source, await addressOf(destination), { isBroken: true });
  await source.waitFor("failed");
  source.kill("SIGTERM");
  expect(await expectUnharmed(story)).toMatchObject({ code: "HOST_FAILED", at: "source" });
  expect(failureOf(await expectDiscarded(destination)).code).toBe("HOST_FAILED");
  await expectArrivalAnew(source, story);
});

test(`27: bad_dest: without a listener it fails by name, and the guest still runs (SEED=${seed})`, async () => {
  await using source = startGuestSource("tcp:127.0.0.1:1", {
    ...GUEST,
    parameters: { connectTimeoutMs: 500 },
  });
  const story = new Story(source);
  const failure = await expectUnharmed(story);
  expect(failure).toMatchObject({ code: "CONNECT_FAILED", at: "source" });
  expect(failure.message).toContain("127.0.0.1:1");
  expect(story.phases).toEqual(SOURCE_PHASES.slice(0, 1));
  await expectArrivalAnew(source, story);
});

for (const [name, ours, theirs] of [
  ["validate_uuid", "1-1", "1-1"],
  ["validate_uuid_src_not_set", "", "2-2"],
  ["validate_uuid_dst_not_set", "1-1", ""],
] as const) {
  test(`30: ${name}: a guest named "${ours}" for one named "${theirs}" is completed (SEED=${seed})`, async () => {
    await expectToMove({}, { guest: { ...GUEST, description: ours }, known: theirs });
  });
}

test(`30: validate_uuid_error: a guest named "1-1" for one named "2-2" is GUEST_MISMATCH at destination (SEED=${seed})`, async () => {
  await using destination = startGuestDestination({}, { known: "2-2" });
  await using source = startGuestSource("", { ...GUEST, description: "1-1" });
  const story = new Story(source);
  tellToLeave(source, await addressOf(destination));
  const mismatch = { code: "GUEST_MISMATCH", at: "destination" };
  expect(await expectUnharmed(story)).toMatchObject(mismatch);
  expect(failureOf(await expectDiscarded(destination))).toMatchObject(mismatch);
  await expectCleanEnd(source);
});
