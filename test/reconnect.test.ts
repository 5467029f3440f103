import { beforeAll, expect, test } from "vitest";
import type { FrameName } from "../channels/frame.ts";
import { FaultRig, warmUp } from "./harness/fault-rig.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

/** A main channel that is lost before COMMIT is joined again, over real sockets. */
const seed = seedFromEnvironment();

const RECONNECT_MS = 20_000;
const BOTH = {
  in: { reconnectTimeoutMs: RECONNECT_MS },
  out: { reconnectTimeoutMs: RECONNECT_MS },
};

beforeAll(warmUp);

/** What it cuts may come back by another connection. */
async function startRelay(): Promise<Relay> {
  const relay = await Relay.start();
  relay.isMended = true;
  return relay;
}

/** What passes on the main channel before COMMIT, once the source may join again. */
const FRAMES: readonly FrameName[] = [
  "agree",
  "accept",
  "round",
  "devices",
  "section",
  "piece",
  "ready",
];

for (const frame of FRAMES) {
  for (const where of ["before", "middle", "after"] as const) {
    // The frame after READY is COMMIT, which may be under way already.
    if (frame === "ready" && where === "after") continue;
    test(`a main channel cut ${where} ${frame} is joined again, and the guest arrives (SEED=${seed})`, async () => {
      await using relay = await startRelay();
      relay.at({ channel: 0, frame, where }, "cut");
      const rig = new FaultRig(seed);
      await rig.succeeds({ relay, ...BOTH });
    });
  }
}

test(`a main channel that is lost again and again is joined each time (SEED=${seed})`, async () => {
  await using relay = await startRelay();
  for (const frame of ["agree", "round", "piece", "ready"] as const) {
    relay.at({ channel: 0, frame, where: "middle" }, "cut");
  }
  // What is sent again passes again, and is cut again.
  relay.at({ channel: 0, frame: "rejoin", nth: 3, where: "middle" }, "cut");
  await new FaultRig(seed).succeeds({ relay, ...BOTH });
});

test(`who joins again with a HELLO that was spoilt is refused, and the guest stays (SEED=${seed})`, async () => {
  await using relay = await startRelay();
  relay.at({ channel: 0, frame: "round", where: "before" }, "cut");
  // The source's own second HELLO.
  relay.at({ channel: 0, frame: "hello", nth: 2, where: "before" }, "flip a bit");
  const rig = new FaultRig(seed);
  const outcome = await rig.fails({ relay, out: BOTH.out, in: { reconnectTimeoutMs: 300 } });
  expect(outcome.source.failure).toMatchObject({
    code: "CHANNEL_LOST",
    message: expect.stringMatching(/joined again, the destination said: .*(checksum|frame)/i),
  });
  await rig.succeeds();
});

test(`nothing is joined again once COMMIT was sent: HANDOVER_UNKNOWN (SEED=${seed})`, async () => {
  await using relay = await startRelay();
  relay.at({ channel: 0, frame: "commit", where: "before" }, "cut");
  const rig = new FaultRig(seed);
  const outcome = await rig.attempt({ relay, out: BOTH.out, in: { reconnectTimeoutMs: 500 } });
  expect(outcome.source.failure?.code).toBe("HANDOVER_UNKNOWN");
  expect(outcome.destination.failure?.code).toBe("CHANNEL_LOST");
});

test(`time without a main channel is part of timeout, which is from the start (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.at({ channel: 0, frame: "round", where: "before" }, "cut");
  const rig = new FaultRig(seed);
  // It is never paused, as all that it would take then has limits of its own.
  rig.source.onLook = () => rig.source.writePages(50);
  const out = { ...BOTH.out, timeoutMs: 500, downtimeLimitMs: 1, maxRounds: 1000 };
  const outcome = await rig.fails({ relay, out, in: { reconnectTimeoutMs: 1000 } });
  expect(outcome.source.failure?.code).toBe("TIMEOUT");
});

test(`an end that does not allow it ends the migration, whatever the other one tries (SEED=${seed})`, async () => {
  await using relay = await startRelay();
  relay.at({ channel: 0, frame: "round", where: "before" }, "cut");
  const rig = new FaultRig(seed);
  const outcome = await rig.fails({ relay, out: { reconnectTimeoutMs: 1000 } });
  expect(outcome.source.failure?.code).toMatch(/CHANNEL_LOST|TOKEN_REFUSED/);
  expect(outcome.destination.failure?.code).toBe("CHANNEL_LOST");
  await rig.succeeds();
});
