import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { expectOneGuest } from "./fixtures/break-ends.ts";
import {
  KINDS,
  type Kind,
  type Moment,
  momentOf,
  STAGES,
  type Stage,
} from "./fixtures/break-moments.ts";
import { breakFirst, Owner, operate, type Pair, plan, watch } from "./fixtures/break-pair.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import {
  addressOf,
  expectArrival,
  startGuestDestination,
  stateIn,
  tellToLeave,
} from "./fixtures/cli-live-pair.ts";
import { Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import type { CliEvent } from "./run-cli.ts";

/**
 * A link that is cut or stalls, and an end that is killed, at random moments of each stage, between
 * two processes. Whatever comes of it, one guest is left, whole, and after a break in post-copy it is
 * recovered. A row's moments after a failure go on with the same guest, which at last moves undisturbed.
 */
const SEED = seedFromEnvironment();

/** Of each row; `npm run soak` has a hundred. */
const MOMENTS = Number(process.env["MOMENTS"] ?? 1);

/** A moment takes some seconds; on a busy machine, several times that. */
const MOMENT_LIMIT_MS = 30_000;
const ROW_LIMIT_MS = 180_000 + MOMENTS * MOMENT_LIMIT_MS;

/** Of moments whose point never came: the guest moved undisturbed, and another one is drawn. */
const misses = (count: number): number => 10 + 2 * count;

interface Happened {
  /** Who has the guest then, and may move it again; null if nobody here. */
  readonly owner: Owner | null;
  /** Null where the moment never came. */
  readonly end: string | null;
}

/** Lets it happen. */
async function live(
  moment: Moment,
  { source, records }: { source: Owner; records: readonly [string, string] },
): Promise<Happened> {
  const { parameters, there, stage, brokenAt } = moment;
  const isOver = stage === "post-copy" || stage === "recovery";
  await using destination = startGuestDestination(
    there,
    { record: records[1] },
    { limitMs: ROW_LIMIT_MS },
  );
  await using relay = await Relay.start();
  relay.isMended = moment.isMended;
  const address = relay.before(await addressOf(destination));
  const pair: Pair = {
    source,
    destination,
    relay,
    killed: null,
    stopped: null,
    hasHappened: false,
  };
  if (brokenAt === null) plan(moment, pair);
  const watching = watch(pair);
  watching.catch(() => {}); // It is awaited below, unless something else fails before.
  tellToLeave(source.cli, address, { parameters, record: records[0], goesOverAtOnce: isOver });
  let outcome: CliEvent | null = null;
  if (brokenAt !== null) {
    outcome = await breakFirst(pair, brokenAt);
    plan(moment, pair);
  }
  outcome ??= await operate(pair, brokenAt !== null);
  const state = outcome?.event === "failed" ? await source.story.next("state") : null;
  const arrived = await destination.exit;
  await watching;
  const isLost = pair.killed === "source";
  expect(outcome !== null || isLost, "only a kill ends it without a word").toBe(true);
  const { verdict, left } = await expectOneGuest({
    source: outcome === null || isLost ? null : { outcome, state: state && stateIn(state) },
    // It may have ended by itself before.
    destination: arrived.signal === "SIGKILL" ? null : arrived,
    records,
  });
  if (pair.killed === null) expect(left).not.toBe("nowhere");
  const end = pair.hasHappened ? verdict : null;
  if (left !== "at the source") {
    if (!isLost) await source.end();
    return { owner: null, end };
  }
  if (!stateIn(must(state, "it tells of a guest that it keeps")).running) {
    source.cli.tell("take back");
    expect(await source.story.next("taken back")).toMatchObject({ runsOn: true, problems: [] });
  }
  return { owner: source, end };
}

/** After all that the guest still moves, undisturbed, and nothing is left behind. */
async function moveOn({ cli, story }: Owner): Promise<void> {
  await using destination = startGuestDestination();
  tellToLeave(cli, await addressOf(destination));
  await expectArrival(cli, destination, story);
}

async function liveThrough(stage: Stage, kind: Kind, row: number): Promise<Map<string, number>> {
  using folder = new CliFolder();
  const ends = new Map<string, number>();
  let owner: Owner | null = null;
  try {
    for (let count = 0, come = 0; come < MOMENTS; count += 1) {
      // Alone, it is the first of its row with another seed.
      const seed = (SEED + count) % 2 ** 32;
      const moment = momentOf(stage, kind, new Prng((seed ^ (row << 24)) >>> 0));
      owner ??= Owner.start(seed, ROW_LIMIT_MS);
      const records = [folder.at(`source-${count}`), folder.at(`destination-${count}`)] as const;
      try {
        const happened: Happened = await live(moment, { source: owner, records });
        owner = happened.owner;
        if (happened.end !== null) come += 1;
        const end = happened.end ?? "never came";
        ends.set(end, (ends.get(end) ?? 0) + 1);
        expect(count - come, "moments that never came").toBeLessThan(misses(MOMENTS));
      } catch (error) {
        const how = `SEED=${seed} npx vitest run random-breaks -t "${stage}: ${kind}"`;
        const what = `moment ${count}: ${moment.name}; again: ${how}\n${String(error)}`;
        throw new Error(what, { cause: error });
      }
    }
    // Who is killed may leave one.
    if (kind !== "kill") expect(folder.names().filter(isDraft)).toEqual([]);
    if (owner !== null) await moveOn(owner);
    return ends;
  } finally {
    await owner?.cli[Symbol.asyncDispose]();
  }
}

function isDraft(name: string): boolean {
  return name.endsWith(".draft");
}

const ROWS = STAGES.flatMap((stage) => KINDS.map((kind) => ({ stage, kind })));

for (const [row, { stage, kind }] of ROWS.entries()) {
  test.concurrent(`${stage}: ${kind} at ${MOMENTS} random moments leaves one guest, whole (SEED=${SEED})`, {
    timeout: ROW_LIMIT_MS,
  }, async () => {
    const ends = await liveThrough(stage, kind, row);
    if (MOMENTS > 1) process.stderr.write(`${stage}: ${kind}: ${JSON.stringify([...ends])}\n`);
  });
}
