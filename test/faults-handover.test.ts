import { beforeAll, expect, test } from "vitest";
import { type AttemptOptions, FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { difference } from "./harness/guest-memory.ts";
import {
  Delay,
  hangs,
  hangsAfterActing,
  REASON,
  throws,
  throwsAfterActing,
} from "./harness/misbehaviour.ts";
import type { PairOutcome } from "./harness/pair.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const STEP_MS = 500;

beforeAll(warmUp);

/** An attempt after which the source does not know who owns the guest, and does nothing about it. */
async function isLeftUnknown(rig: FaultRig, options: AttemptOptions): Promise<PairOutcome> {
  const outcome = await rig.attempt(options);
  expect(outcome.source.failure).toMatchObject({ code: "HANDOVER_UNKNOWN", at: "source" });
  expect(outcome.source.failure?.remedy).toBe("settle");
  const { running, tracking, calls } = rig.source;
  expect({ running, tracking, calls }).toEqual({
    running: false,
    tracking: true,
    calls: ["startDirtyLog", "pause", "saveDevices"],
  });
  return outcome;
}

/** Whoever knows that the guest does not run there says so, and it moves after all. */
async function settlesAtSource(rig: FaultRig): Promise<void> {
  await rig.source.resume();
  await rig.source.stopDirtyLog();
  await rig.succeeds();
}

for (const where of ["before", "middle"] as const) {
  test(`a COMMIT that is lost leaves the source paused and nobody running: ${where} (SEED=${seed})`, async () => {
    await using relay = await Relay.start();
    relay.at({ channel: 0, frame: "commit", where }, "cut link");
    const rig = new FaultRig(seed);
    const outcome = await isLeftUnknown(rig, { relay });
    expect(outcome.destination.failure?.code).toBe("CHANNEL_LOST");
    rig.expectDiscarded();
    await relay[Symbol.asyncDispose]();
    await settlesAtSource(rig);
  });
}

for (const point of [
  { channel: 0, frame: "commit", where: "after" },
  { channel: 0, frame: "running", where: "before" },
  { channel: 0, frame: "running", where: "middle" },
] as const) {
  test(`a link cut ${point.where} ${point.frame} leaves one running guest, there (SEED=${seed})`, async () => {
    await using relay = await Relay.start();
    relay.at(point, "cut link");
    const rig = new FaultRig(seed);
    const outcome = await isLeftUnknown(rig, { relay });
    expect(verdictsOf(outcome).destination).toBe("completed");
    expect(rig.destination.calls).toEqual(["prepare", "loadDevices", "resume"]);
    expect(rig.destination.running).toBe(true);
    expect(difference(rig.source.blocks, rig.destination.blocks ?? [])).toBe(null);
    await relay[Symbol.asyncDispose]();
    await rig.expectNoLeaks();
  });
}

test(`a link cut while the destination resumes the guest does not stop it there (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const rig = new FaultRig(seed);
  const resuming = new Delay();
  rig.destination.misbehave("resume", resuming.misbehaviour);
  const cut = resuming.begun.then(() => relay.do("cut"));
  const outcome = await isLeftUnknown(rig, { relay, onSourceEnd: () => void resuming.end() });
  await cut;
  expect(verdictsOf(outcome).destination).toBe("completed");
  expect(rig.destination.running).toBe(true);
  await relay[Symbol.asyncDispose]();
  await rig.expectNoLeaks();
});

test(`a link cut after RUNNING is no failure at either end (SEED=${seed})`, async () => {
  for (const point of [
    { channel: 0, frame: "running", where: "after" },
    { channel: 0, frame: "done", where: "before" },
    { channel: 0, frame: "done", where: "middle" },
  ] as const) {
    await using relay = await Relay.start();
    relay.at(point, "cut link");
    const rig = new FaultRig(seed);
    const outcome = await rig.attempt({ relay });
    expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
    rig.expectArrived();
    await relay[Symbol.asyncDispose]();
    await rig.expectNoLeaks();
  }
});

test(`a destination that falls silent after COMMIT leaves the source paused (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.at({ channel: 0, frame: "commit", where: "after" }, "stall link");
  const rig = new FaultRig(seed);
  const outcome = await isLeftUnknown(rig, { relay, out: { stepTimeoutMs: STEP_MS } });
  expect(verdictsOf(outcome).destination).toBe("completed");
  expect(rig.destination.running).toBe(true);
  await relay[Symbol.asyncDispose]();
  await rig.expectNoLeaks();
});

test(`a COMMIT that never arrives times out on both ends, and nobody runs (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.at({ channel: 0, frame: "commit", where: "before" }, "stall link");
  const rig = new FaultRig(seed);
  const limits = { stepTimeoutMs: STEP_MS };
  const outcome = await isLeftUnknown(rig, { relay, out: limits, in: limits });
  expect(outcome.destination.failure).toMatchObject({
    code: "PEER_SILENT",
    at: "destination",
    facts: { waitingFor: "commit" },
  });
  rig.expectDiscarded();
  await relay[Symbol.asyncDispose]();
  await settlesAtSource(rig);
});

for (const [how, misbehaviour, code] of [
  ["throws", throws, "HOST_FAILED"],
  ["throws after it acted", throwsAfterActing, "HOST_FAILED"],
  ["never returns", hangs, "HOST_TIMEOUT"],
  ["acts and never returns", hangsAfterActing, "HOST_TIMEOUT"],
] as const) {
  test(`a destination that cannot resume keeps the guest: ${how} (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    rig.destination.misbehave("resume", misbehaviour);
    const outcome = await isLeftUnknown(rig, { in: { stepTimeoutMs: STEP_MS } });
    expect(outcome.destination.failure).toMatchObject({ code, at: "destination" });
    // The operator at the source learns what the destination says about it.
    expect(outcome.source.failure?.message).toContain(outcome.destination.failure?.message);
    if (code === "HOST_FAILED") expect(outcome.source.failure?.message).toContain(REASON);
    // Its memory is the only place where the guest may be.
    expect(rig.destination.calls).toEqual(["prepare", "loadDevices", "resume"]);
    expect(difference(rig.source.blocks, rig.destination.blocks ?? [])).toBe(null);
    await rig.expectNoLeaks();
  });
}

test(`a source that is settled elsewhere is not resumed by a cancel (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.at({ channel: 0, frame: "running", where: "before" }, "cut link");
  const rig = new FaultRig(seed);
  const abort = new AbortController();
  await isLeftUnknown(rig, { relay, out: { signal: abort.signal } });
  abort.abort();
  await relay[Symbol.asyncDispose]();
  await rig.expectNoLeaks();
  expect(rig.source.calls).toEqual(["startDirtyLog", "pause", "saveDevices"]);
});
