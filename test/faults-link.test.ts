import { beforeAll, expect, test } from "vitest";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { type Deed, type Point, Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

beforeAll(warmUp);

/** Every frame of a migration before COMMIT, in order, and who is in which phase meanwhile. */
const FRAMES_IN_ORDER: readonly (readonly [string, Omit<Point, "where">])[] = [
  ["connect", { channel: 0, frame: "hello" }],
  ["connect", { channel: 0, frame: "welcome" }],
  ["agree", { channel: 0, frame: "agree" }],
  ["agree", { channel: 0, frame: "accept" }],
  ["agree", { channel: 1, frame: "hello" }],
  ["agree", { channel: 1, frame: "welcome" }],
  ["agree", { channel: 1, frame: "fence" }],
  ["agree", { channel: 1, frame: "fenced" }],
  ["precopy", { channel: 1, frame: "pages" }],
  ["precopy", { channel: 1, frame: "pages", nth: 7 }],
  ["precopy", { channel: 1, frame: "fence", nth: 2 }],
  ["precopy", { channel: 1, frame: "fenced", nth: 2 }],
  ["precopy", { channel: 0, frame: "round" }],
  // The guest may be paused after one round: the second one is the rest.
  ["rest", { channel: 1, frame: "fence", nth: 3 }],
  ["rest", { channel: 1, frame: "fenced", nth: 3 }],
  ["rest", { channel: 0, frame: "round", nth: 2 }],
  ["devices", { channel: 0, frame: "devices" }],
  ["devices", { channel: 0, frame: "section" }],
  ["devices", { channel: 0, frame: "piece" }],
  ["ready", { channel: 0, frame: "ready" }],
];

function nameOf({ channel, frame, nth }: Omit<Point, "where">): string {
  return `${frame}${nth === undefined ? "" : ` ${nth}`} on channel ${channel}`;
}

/** Without a destination that knows of it, the source is turned away and another one may come. */
function isKnown({ channel, frame }: Omit<Point, "where">): boolean {
  return !(channel === 0 && frame === "hello");
}

async function failsAt(rig: FaultRig, point: Point, deed: Deed, options: object = {}) {
  await using relay = await Relay.start();
  relay.at(point, deed);
  return await rig.fails({ ...options, relay });
}

for (const [phase, point] of FRAMES_IN_ORDER) {
  for (const deed of ["cut", "cut link"] as const) {
    test(`${deed} within ${nameOf(point)} in ${phase}: CHANNEL_LOST, the guest runs on (SEED=${seed})`, async () => {
      const rig = new FaultRig(seed);
      const outcome = await failsAt(rig, { ...point, where: "middle" }, deed);
      expect(outcome.source.failure?.code).toBe("CHANNEL_LOST");
      if (isKnown(point)) expect(outcome.destination.failure?.code).toBe("CHANNEL_LOST");
      await rig.succeeds();
    });
  }
}

test(`the last channel that is cut, after all others, is CHANNEL_LOST and named (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  {
    await using relay = await Relay.start();
    for (const channel of [1, 2, 3]) {
      relay.at({ channel, frame: "pages", nth: 3, where: "before" }, "cut");
    }
    const outcome = await rig.fails({ relay, out: { channels: 3, connectTimeoutMs: 500 } });
    for (const { failure } of [outcome.source, outcome.destination]) {
      expect(failure).toMatchObject({
        code: "CHANNEL_LOST",
        facts: { channel: expect.toBeOneOf([1, 2, 3]) },
      });
    }
  }
  await rig.succeeds();
});

test(`a destination outlives a source that broke off before it said HELLO (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.at({ channel: 0, frame: "hello", where: "middle" }, "cut");
  const rig = new FaultRig(seed);
  const phases: string[] = [];
  const outcome = await rig.fails({ relay, in: { onPhase: (phase) => phases.push(phase) } });
  expect(phases).toEqual(["listen"]);
  expect(verdictsOf(outcome)).toEqual({
    source: "CHANNEL_LOST at source",
    destination: "CANCELLED at destination",
  });
  await relay[Symbol.asyncDispose]();
  await rig.succeeds();
});

for (const point of [
  { channel: 1, frame: "pages", nth: 3 },
  { channel: 1, frame: "fence" },
  { channel: 1, frame: "fenced" },
  { channel: 0, frame: "round" },
  { channel: 0, frame: "piece" },
  { channel: 0, frame: "ready" },
] as const) {
  test(`a bit that is changed in ${nameOf(point)} is CHECKSUM_MISMATCH (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const outcome = await failsAt(rig, { ...point, where: "before" }, "flip a bit", {
      out: { checksum: true },
      in: { checksum: true },
    });
    const isFromDestination = ["fenced", "ready"].includes(point.frame);
    const [reader, writer] = isFromDestination
      ? (["source", "destination"] as const)
      : (["destination", "source"] as const);
    const verdicts = verdictsOf(outcome);
    expect(verdicts[reader]).toBe(`CHECKSUM_MISMATCH at ${reader}`);
    // A main channel that cannot be trusted is not used to say so.
    const lost = `CHANNEL_LOST at ${writer}`;
    expect([verdicts[reader], ...(point.channel === 0 ? [lost] : [])]).toContain(verdicts[writer]);
    await rig.succeeds({ out: { checksum: true }, in: { checksum: true } });
  });
}
