import { beforeAll, expect, test } from "vitest";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { type Deed, type Point, Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Nothing that is not stalled is silent for so long, also on a busy machine. */
const STALL_MS = 1500;

/** Whoever waits for one of these, waits longer than the test. */
const PATIENT = { channelTimeoutMs: 90_000, connectTimeoutMs: 90_000, stepTimeoutMs: 90_000 };

beforeAll(warmUp);

/** What is noticed depends on who looked first, and that nothing moves is what all of it says. */
const STALLED = /^(CHANNEL_STALLED|CHANNEL_LOST|PEER_SILENT|CHANNELS_MISSING) at/;

for (const [point, deed] of [
  [{ channel: 0, frame: "hello", where: "middle" }, "stall"],
  [{ channel: 0, frame: "welcome", where: "middle" }, "stall"],
  [{ channel: 0, frame: "agree", where: "middle" }, "stall"],
  [{ channel: 0, frame: "accept", where: "before" }, "stall"],
  [{ channel: 1, frame: "hello", where: "middle" }, "stall"],
  [{ channel: 1, frame: "pages", nth: 3, where: "middle" }, "stall"],
  [{ channel: 1, frame: "pages", nth: 3, where: "before" }, "stall link"],
  [{ channel: 0, frame: "round", where: "before" }, "stall link"],
  [{ channel: 1, frame: "fence", nth: 3, where: "after" }, "stall link"],
  // Between two frames only the answer to the fence is missed.
  [{ channel: 1, frame: "pages", nth: 3, where: "before" }, "stall"],
  [{ channel: 1, frame: "fence", nth: 2, where: "before" }, "stall"],
  [{ channel: 1, frame: "fenced", nth: 3, where: "middle" }, "stall"],
  [{ channel: 0, frame: "devices", where: "middle" }, "stall"],
  [{ channel: 0, frame: "piece", where: "middle" }, "stall"],
  [{ channel: 0, frame: "ready", where: "before" }, "stall"],
] as const satisfies readonly (readonly [Point, Deed])[]) {
  const nth = "nth" in point ? ` ${point.nth}` : "";
  const name = `${deed} ${point.where} ${point.frame}${nth} on channel ${point.channel}`;

  test(`a peer that stops reading and writing is noticed in time: ${name} (SEED=${seed})`, async () => {
    await using relay = await Relay.start();
    relay.at(point, deed);
    const rig = new FaultRig(seed);
    const limits = { channelTimeoutMs: STALL_MS, connectTimeoutMs: STALL_MS };
    const out = { ...limits, stepTimeoutMs: 2 * STALL_MS };
    const outcome = await rig.fails({ relay, out, in: limits });
    const verdicts = verdictsOf(outcome);
    expect(verdicts.source).toMatch(STALLED);
    const isKnown = !(point.channel === 0 && point.frame === "hello");
    // The source may have given up and closed the connection, with nobody to carry its word.
    if (isKnown) expect(verdicts.destination).toMatch(/^(CHANNEL_\w+|PEER_SILENT|CHANNELS_\w+) at/);
    await relay[Symbol.asyncDispose]();
    await rig.succeeds();
  });

  test(`a cancel need not wait for a peer that does not move: ${name} (SEED=${seed})`, async () => {
    await using relay = await Relay.start();
    const rig = new FaultRig(seed);
    const abort = new AbortController();
    relay.at(point, () => {
      if (deed === "stall") relay.do("stall", point.channel);
      else relay.do("stall");
      setImmediate(() => abort.abort());
    });
    const out = { ...PATIENT, signal: abort.signal };
    // Nobody can reach the destination.
    const end = new AbortController();
    const onSourceEnd = (): void => end.abort();
    const patient = { ...PATIENT, signal: end.signal };
    const outcome = await rig.fails({ relay, out, in: patient, onSourceEnd });
    expect(outcome.source.failure?.code).toBe("CANCELLED");
    await relay[Symbol.asyncDispose]();
    await rig.succeeds();
  });
}
