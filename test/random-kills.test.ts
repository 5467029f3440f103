import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import {
  addressOf,
  destinationStateOf,
  sourceStateOf,
  startGuestDestination,
  startGuestSource,
  untilIn,
} from "./fixtures/cli-live-pair.ts";
import { failureIn, failureOf } from "./fixtures/cli-outcome.ts";
import { type Point, Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import type { Cli } from "./run-cli.ts";

/** An end is killed at a random moment of post-copy, or of its recovery: two processes for each. */
const SEED = seedFromEnvironment();

/** `KILLS=200` for the whole story: half as many in the recovery. */
const KILLS = Number(process.env["KILLS"] ?? 6);
const KILL_LIMIT_MS = 20_000;

/** With two bulk channels. */
const LANE = 3;

interface Place {
  readonly channel: number;
  readonly frame: Point["frame"];
  readonly count: number;
}

/** Each frame, and how many there are at least: from the switch on, or once the link is mended. */
const PLACES = {
  "post-copy": [
    { channel: 0, frame: "switch", count: 1 },
    { channel: 0, frame: "commit", count: 1 },
    { channel: 0, frame: "running", count: 1 },
    { channel: LANE, frame: "request", count: 20 },
    { channel: LANE, frame: "pages", count: 20 },
  ],
  "post-copy's recovery": [
    { channel: 0, frame: "hello", count: 1 },
    { channel: 0, frame: "recover", count: 1 },
    { channel: 0, frame: "missing", count: 1 },
    { channel: 0, frame: "recovered", count: 1 },
    { channel: 0, frame: "resumed", count: 1 },
    { channel: LANE, frame: "hello", count: 1 },
    { channel: LANE, frame: "request", count: 5 },
    { channel: LANE, frame: "pages", count: 5 },
  ],
} satisfies Readonly<Record<string, readonly Place[]>>;
type Stage = keyof typeof PLACES;

/** So slow that the guest has to ask for pages: lanes are not held to it. */
const THERE: ParameterOptions = {
  maxBandwidthBytesPerSecond: 24 * MIB,
  channels: 2,
  postcopy: "after-rounds",
  downtimeLimitMs: 1,
  channelTimeoutMs: 1500,
  connectTimeoutMs: 1500,
  stepTimeoutMs: 3000,
};
const HERE: ParameterOptions = {
  channelTimeoutMs: 1500,
  stepTimeoutMs: 3000,
};

/** For how long a broken link is waited for: where it shall be mended, both ends must be heard before. */
const RECOVER_MS: Readonly<Record<Stage, number>> = {
  "post-copy": 300,
  "post-copy's recovery": 5000,
};

/** Most is still to come when the link breaks. */
const MUCH_LEFT = { isAllMarked: true };

interface Kill {
  readonly stage: Stage;
  readonly victim: "source" | "destination";
  readonly point: Point;
}

function killOf(random: Prng, stage: Stage): Kill {
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const { count, ...place } = pick<Place>(PLACES[stage]);
  const where = pick(["before", "middle", "after"] as const);
  const point = { ...place, nth: 1 + random.below(count), where };
  return { stage, victim: pick(["source", "destination"] as const), point };
}

const WHOLE = { resumes: 1, discards: 0, runsOn: true, problems: [] };

/** Before COMMIT the source keeps it; after that, what the other end has is gone or out of reach. */
async function survive({ stage, victim, point }: Kill): Promise<string> {
  const recovers = { recoverTimeoutMs: RECOVER_MS[stage] };
  await using destination = startGuestDestination({ ...HERE, ...recovers });
  await using relay = await Relay.start();
  const address = relay.before(await addressOf(destination));
  const parameters = { ...THERE, ...recovers };
  const isOfRecovery = stage === "post-copy's recovery";
  await using source = startGuestSource(address, {
    seed: SEED,
    parameters,
    ...(isOfRecovery ? MUCH_LEFT : {}),
  });
  const killed = { source, destination }[victim];
  if (isOfRecovery) await untilMended({ relay, source, destination });
  relay.at(point, () => killed.kill("SIGKILL"));
  if (isOfRecovery) source.tell("recover");
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

/** The link breaks when the guest runs there, both ends pause, and it would carry again. */
async function untilMended(between: {
  relay: Relay;
  source: Cli;
  destination: Cli;
}): Promise<void> {
  const { relay, source, destination } = between;
  const bothIn = (phase: string) => [source, destination].map((end) => untilIn(end, phase));
  await Promise.all(bothIn("postcopy"));
  relay.do("cut");
  await Promise.all(bothIn("postcopy-paused"));
  relay.isMended = true;
}

const KILLS_OF: readonly (readonly [Stage, number])[] = [
  ["post-copy", KILLS],
  ["post-copy's recovery", Math.ceil(KILLS / 2)],
];

test.for(KILLS_OF)(
  `an end is killed at random moments of %s, %i times, and the other one keeps what it has (SEED=${SEED})`,
  { timeout: KILLS * KILL_LIMIT_MS },
  async ([stage, kills]) => {
    const random = new Prng(SEED);
    const ends = new Map<string, number>();
    for (let count = 0; count < kills; count += 1) {
      const kill = killOf(random, stage);
      const { victim, point } = kill;
      const name = `${victim}, ${point.where} ${point.frame} ${point.nth} of channel ${point.channel}`;
      try {
        const end = await survive(kill);
        ends.set(end, (ends.get(end) ?? 0) + 1);
      } catch (error) {
        throw new Error(`kill ${count}, ${name}`, { cause: error });
      }
    }
    expect([...ends.values()].reduce((sum, each) => sum + each, 0)).toBe(kills);
    if (process.env["KILLS"] !== undefined) process.stderr.write(`${JSON.stringify([...ends])}\n`);
  },
);
