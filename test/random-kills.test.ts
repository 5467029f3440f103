import { expect, test } from "vitest";
import type { ParameterOptions } from "../engine/parameters.ts";
import {
  addressOf,
  destinationStateOf,
  sourceStateOf,
  startGuestDestination,
  startGuestSource,
} from "./fixtures/cli-live-pair.ts";
import { failureIn, failureOf } from "./fixtures/cli-outcome.ts";
import { type Point, Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/** An end is killed at a random moment of post-copy: each moment is two processes of its own. */
const SEED = seedFromEnvironment();

/** `KILLS=100` for the whole story. */
const KILLS = Number(process.env["KILLS"] ?? 6);
const KILL_LIMIT_MS = 20_000;

/** With two bulk channels. */
const LANE = 3;

/** From COMMIT on: each frame, and how many there are at least. */
const PLACES: readonly { channel: number; frame: Point["frame"]; count: number }[] = [
  { channel: 0, frame: "switch", count: 1 },
  { channel: 0, frame: "commit", count: 1 },
  { channel: 0, frame: "running", count: 1 },
  { channel: LANE, frame: "request", count: 20 },
  { channel: LANE, frame: "pages", count: 20 },
];

/** So slow that the guest has to ask for pages: lanes are not held to it. */
const THERE: ParameterOptions = {
  channels: 2,
  postcopy: "after-rounds",
  downtimeLimitMs: 1,
  maxBandwidthBytesPerSecond: 24 * 1024 * 1024,
  channelTimeoutMs: 1500,
  connectTimeoutMs: 1500,
  stepTimeoutMs: 3000,
  recoverTimeoutMs: 300,
};
const HERE: ParameterOptions = {
  channelTimeoutMs: 1500,
  stepTimeoutMs: 3000,
  recoverTimeoutMs: 300,
};

interface Kill {
  readonly victim: "source" | "destination";
  readonly point: Point;
}

function killOf(random: Prng): Kill {
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const { count, ...place } = pick(PLACES);
  const where = pick(["before", "middle", "after"] as const);
  const point = { ...place, nth: 1 + random.below(count), where };
  return { victim: pick(["source", "destination"] as const), point };
}

const WHOLE = { resumes: 1, discards: 0, runsOn: true, problems: [] };

/** Before COMMIT the source keeps it; after that, what the other end has is gone or out of reach. */
async function survive({ victim, point }: Kill): Promise<string> {
  await using destination = startGuestDestination(HERE);
  await using relay = await Relay.start();
  const address = relay.before(await addressOf(destination));
  await using source = startGuestSource(address, { seed: SEED, parameters: THERE });
  const killed = { source, destination }[victim];
  relay.at(point, () => killed.kill("SIGKILL"));
  if (victim === "source") {
    const arrived = await destination.exit;
    const { resumes, ...state } = destinationStateOf(arrived);
    if (arrived.status === 0) expect({ resumes, ...state }).toEqual(WHOLE);
    else if (resumes === 0) expect(failureOf(arrived).code).toMatch(/^(CHANNEL_LOST|PEER_SILENT)$/);
    else expect(failureOf(arrived).code).toBe("POSTCOPY_INTERRUPTED");
    return arrived.status === 0 ? "arrived" : failureOf(arrived).code;
  }
  for await (const event of source.events()) {
    // All pages had arrived, and it ran there when its process was killed.
    if (event.event === "completed") return "arrived";
    if (event.event !== "failed") continue;
    const { code } = failureIn(event);
    expect(code).toMatch(/^(CHANNEL_LOST|PEER_SILENT|HANDOVER_UNKNOWN|POSTCOPY_INTERRUPTED)$/);
    const isDecided = code === "HANDOVER_UNKNOWN" || code === "POSTCOPY_INTERRUPTED";
    const { running, runsOn, problems } = await sourceStateOf(source);
    expect({ running, runsOn, problems }).toEqual({
      running: !isDecided,
      runsOn: !isDecided,
      problems: [],
    });
    return code;
  }
  throw new Error("the source ended without a word");
}

test(
  `an end is killed at ${KILLS} random moments of post-copy, and the other one keeps what it has (SEED=${SEED})`,
  async () => {
    const random = new Prng(SEED);
    const ends = new Map<string, number>();
    for (let count = 0; count < KILLS; count += 1) {
      const kill = killOf(random);
      const { victim, point } = kill;
      const name = `${victim}, ${point.where} ${point.frame} ${point.nth} of channel ${point.channel}`;
      try {
        const end = await survive(kill);
        ends.set(end, (ends.get(end) ?? 0) + 1);
      } catch (error) {
        throw new Error(`kill ${count}, ${name}`, { cause: error });
      }
    }
    expect([...ends.values()].reduce((sum, each) => sum + each, 0)).toBe(KILLS);
    if (process.env["KILLS"] !== undefined) process.stderr.write(`${JSON.stringify([...ends])}\n`);
  },
  KILLS * KILL_LIMIT_MS,
);
