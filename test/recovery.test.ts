import type { Socket } from "node:net";
import { setImmediate as turn } from "node:timers/promises";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import { Deadline, useClock } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import type { Connection } from "../channels/connection.ts";
import { migrateIn } from "../engine/destination.ts";
import { LiveParameters } from "../engine/live-parameters.ts";
import { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import { ReadyThreads } from "../engine/ready-threads.ts";
import { type MigrateOutOptions, migrateOut } from "../engine/source.ts";
import type { Progress } from "../engine/statistics.ts";
import { REAL_SURROUNDINGS, type Surroundings } from "../engine/surroundings.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { halvesShape, untilWritten } from "./fixtures/memory-guest-shapes.ts";
import { warmUp } from "./harness/fault-rig.ts";
import { keptThreads } from "./harness/kept-threads.ts";
import { type Outcome, outcomeOf } from "./harness/pair.ts";
import { Phases } from "./harness/phases.ts";
import { Relay } from "./harness/relay.ts";
import { ThreadWatch } from "./harness/thread-watch.ts";
import { seedFromEnvironment } from "./prng.ts";

/**
 * A link that breaks in post-copy: both ends keep what they have, and go on over another one. How it
 * goes between two processes is in process-recovery.test.ts, and at random moments in
 * random-breaks.test.ts.
 */
const seed = seedFromEnvironment();

beforeAll(warmUp);

const SHAPE = halvesShape(seed);

const LIMITS = { channelTimeoutMs: 5000, stepTimeoutMs: 10_000 };
/** Slow enough that the link breaks while most is missing. */
const SLOW = { maxBandwidthBytesPerSecond: 24 * MIB };

class Journey {
  readonly source = { phases: new Phases(), recovery: new PostcopyRecovery() };
  readonly destination = { phases: new Phases(), recovery: new PostcopyRecovery() };
  readonly cancel = { source: new AbortController(), destination: new AbortController() };
  readonly to = new MemoryGuestDestination({ vcpuThreads: 2 });
  readonly guest: MemoryGuest;
  outcomes!: Promise<[Outcome, Outcome]>;
  arrival!: Promise<Outcome>;
  address = "";

  private constructor(guest: MemoryGuest) {
    this.guest = guest;
  }

  /** Begins over `relay`. */
  static async begin(
    relay: Relay,
    options: MigrateOutOptions = {},
    destinationOptions: object = {},
    { shape = SHAPE, surroundings }: { shape?: typeof SHAPE; surroundings?: Surroundings } = {},
  ): Promise<Journey> {
    const guest = await MemoryGuest.create(shape);
    onTestFinished(() => guest.stop());
    const journey = new Journey(guest);
    onTestFinished(() => journey.to.discard());
    await guest.run();
    await untilWritten(guest, 100);
    const address = Promise.withResolvers<string>();
    const { source, destination, cancel } = journey;
    const kept = await keptThreads();
    const arriving = outcomeOf(
      migrateIn(journey.to, "tcp:127.0.0.1:0", {
        ...LIMITS,
        threads: kept.destination,
        ...destinationOptions,
        signal: cancel.destination.signal,
        recovery: destination.recovery,
        onPhase: destination.phases.note,
        onListening: address.resolve,
      }),
    );
    journey.address = await address.promise;
    const leaving = outcomeOf(
      migrateOut(
        guest,
        relay.before(journey.address),
        {
          ...LIMITS,
          ...SLOW,
          channels: 2,
          postcopy: "after-rounds",
          downtimeLimitMs: 1,
          threads: kept.source,
          ...options,
          signal: cancel.source.signal,
          recovery: source.recovery,
          onPhase: source.phases.note,
        },
        surroundings,
      ),
    );
    journey.arrival = arriving;
    journey.outcomes = Promise.all([leaving, arriving]);
    return journey;
  }

  /** The guest runs there, as both ends know. */
  async moving(): Promise<void> {
    const ends = [this.source, this.destination];
    await Promise.all(ends.map(({ phases }) => phases.reach("postcopy")));
  }

  async paused(): Promise<void> {
    await Promise.all([
      this.source.phases.reach("postcopy-paused"),
      this.destination.phases.reach("postcopy-paused"),
    ]);
    // The one copy that may run is there, and what it waits for does not stop it from obeying.
    expect([this.guest.running, this.to.guest.running]).toEqual([false, true]);
  }

  /** The whole guest is there, and runs in one place. */
  async expectArrived(): Promise<void> {
    const outcomes = await this.outcomes;
    expect(outcomes.map(({ failure }) => failure?.toJSON())).toEqual([undefined, undefined]);
    expect(this.guest.running).toBe(false);
    const { guest } = this.to;
    expect(guest.running).toBe(true);
    await untilWritten(guest, guest.writtenPages + 100);
    await guest.pause();
    expect(await guest.verify()).toEqual([]);
  }
}

test(`a source joins again by itself, within reconnect-timeout, as often as it takes (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.isMended = true;
  let mains = 0;
  const surroundings = connecting((channel, connection) => {
    if (channel === 0) mains += 1;
    // The first try to join again comes no further than to be welcome.
    if (channel === 0 && mains === 2) breakAfterFrame(connection);
  });
  const progress = { source: new Sent(), destination: new Sent() };
  // However long a cut takes to come: most is missing still.
  const live = new LiveParameters();
  const slowly = { maxBandwidthBytesPerSecond: 4 * MIB, live };
  const journey = await Journey.begin(
    relay,
    { ...slowly, reconnectTimeoutMs: 20_000, onProgress: progress.source.note },
    { onProgress: progress.destination.note },
    { surroundings },
  );
  for (let cut = 1; cut <= 3; cut += 1) {
    while (journey.destination.phases.count("postcopy") < cut) {
      await journey.destination.phases.reach("postcopy");
    }
    await untilWritten(journey.to.guest, journey.to.guest.writtenPages + 20);
    relay.do("cut");
    await journey.destination.phases.reach("postcopy-paused");
  }
  live.change({ maxBandwidthBytesPerSecond: 0 });
  await journey.expectArrived();
  const [left, arrived] = (await journey.outcomes).map(({ report }) => report?.rounds.at(-1));
  // The last round is that of all legs together. Of a frame that did not end, what came is not counted.
  expect(arrived?.dirtyPages).toBe(left?.dirtyPages);
  expect(left?.sentPages).toBeGreaterThanOrEqual(left?.dirtyPages ?? Number.NaN);
  expect(arrived?.sentPages).toBeGreaterThan(0);
  expect(mains).toBeGreaterThan(4);
  expect([progress.source.backwards, progress.destination.backwards]).toEqual([[], []]);
});

test(`a recovery goes on with the threads that its hosts keep (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.isMended = true;
  await using out = new ReadyThreads("source", 2, { lanes: 1 });
  await using into = new ReadyThreads("destination", 2, { lanes: 1 });
  const options = { reconnectTimeoutMs: 20_000, threads: out };
  const journey = await Journey.begin(relay, options, { threads: into });
  await journey.moving();
  using watch = new ThreadWatch();
  relay.do("cut");
  await journey.expectArrived();
  expect(journey.destination.phases.count("postcopy-paused")).toBe(1);
  expect((await watch.all()).length, "threads started since").toBe(0);
  expect([out.count, out.lanes.count, into.count, into.lanes.count]).toEqual([2, 1, 2, 1]);
});

test(`a source that joins again tells what was dirty until it has heard what is (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.isMended = true;
  const stalled = Promise.withResolvers<void>();
  relay.at({ channel: 0, frame: "missing", where: "before" }, "stall", stalled.resolve);
  const told: number[] = [];
  const enough = Promise.withResolvers<void>();
  let isJoining = false;
  const onProgress = ({ dirtyPages }: Progress): void => {
    if (isJoining) told.push(dirtyPages);
    if (told.length === 2) enough.resolve();
  };
  const journey = await Journey.begin(relay, { reconnectTimeoutMs: 20_000, onProgress });
  await journey.moving();
  relay.do("cut");
  await stalled.promise;
  isJoining = true;
  await enough.promise;
  isJoining = false;
  expect(Math.min(...told)).toBeGreaterThan(0);
  relay.do("cut");
  await journey.expectArrived();
});

/** Whoever makes a connection hands it to `meet` first. */
function connecting(meet: (channel: number, connection: Connection) => void): Surroundings {
  return {
    ...REAL_SURROUNDINGS,
    connector(address) {
      const real = REAL_SURROUNDINGS.connector(address);
      const connect = async (channel: number, limitMs: number): Promise<Connection> => {
        const connection = await real.connect(channel, limitMs);
        meet(channel, connection);
        return connection;
      };
      return { ...real, connect };
    },
  };
}

/** What was sent stays sent, however often the link breaks. */
class Sent {
  readonly backwards: Pick<Progress, "sentBytes" | "bytesPerSecond">[] = [];
  #sentBytes = 0;

  readonly note = ({ sentBytes, bytesPerSecond }: Progress): void => {
    if (sentBytes < this.#sentBytes || bytesPerSecond < 0) {
      this.backwards.push({ sentBytes, bytesPerSecond });
    }
    this.#sentBytes = sentBytes;
  };
}

/** HELLO goes out, and nothing after it. */
function breakAfterFrame({ writer }: Connection): void {
  const write = writer.write.bind(writer) as (frame: Uint8Array, done: () => void) => boolean;
  let frames = 0;
  const broken = (frame: Uint8Array, done: (error?: Error) => void): boolean => {
    frames += 1;
    if (frames === 1) return write(frame, done);
    done(new Error("the link broke"));
    writer.destroy();
    return false;
  };
  writer.write = broken as typeof writer.write;
}

test(`a channel that comes back when all was sent keeps nobody waiting (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.isMended = true;
  const live = new LiveParameters();
  const ended = Promise.withResolvers<void>();
  // By then the bulk channels have ended: this one is a lane.
  relay.at({ channel: 3, frame: "end", where: "before" }, ended.resolve);
  const found = Promise.withResolvers<void>();
  let isClosed = false;
  let connections = 0;
  const surroundings = connecting((channel, connection) => {
    if (channel === 2) connections += 1;
    if (channel !== 2 || connections !== 2) return;
    holdBack(connection, ended.promise, found.resolve);
    connection.reader.once("close", () => {
      isClosed = true;
    });
  });
  const wasClosed = Promise.withResolvers<boolean>();
  relay.at({ channel: 0, frame: "complete", where: "before" }, () => wasClosed.resolve(isClosed));
  const journey = await Journey.begin(relay, { live }, {}, { surroundings });
  await journey.moving();
  relay.do("cut", 2);
  await found.promise;
  live.change({ maxBandwidthBytesPerSecond: 0 });
  await journey.expectArrived();
  expect(await wasClosed.promise).toBe(true);
});

/** The first bytes from the other end are read when `until` says so; `onFirst` is told of them. */
function holdBack({ reader }: Connection, until: Promise<void>, onFirst: () => void): void {
  const on = reader.on.bind(reader) as (event: string, tell: (bytes: Buffer) => void) => Socket;
  const held = (event: string, tell: (bytes: Buffer) => void): Socket => {
    if (event !== "data") return on(event, tell);
    return on("data", (bytes) => {
      onFirst();
      void until.then(() => tell(bytes));
    });
  };
  reader.on = held as typeof reader.on;
}

test(`RUNNING is lost: the source learns from a recovery who owns the guest (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.at({ channel: 0, frame: "running", where: "before" }, "cut link");
  const journey = await Journey.begin(relay);
  await journey.paused();
  await journey.source.recovery.recover(journey.address);
  await journey.expectArrived();
});

test(`COMPLETE is lost: the destination, which has all, says so once more (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  relay.isMended = true;
  relay.at({ channel: 0, frame: "complete", where: "before" }, "cut link");
  const journey = await Journey.begin(relay, { reconnectTimeoutMs: 20_000 });
  await journey.expectArrived();
});

test(`a lane that is lost breaks the link as a whole, and new channels replace all (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay);
  await journey.moving();
  relay.do("cut", 3);
  await journey.paused();
  expect(journey.source.recovery.pausedFor).not.toBe(null);
  await journey.source.recovery.recover(journey.address);
  await journey.expectArrived();
});

test(`a recovery at another address, after both ends were told to pause (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay);
  const { source, destination } = journey;
  await expect(source.recovery.recover()).rejects.toThrow("Cannot recover");
  await journey.moving();
  destination.recovery.pause();
  await journey.paused();
  const address = await destination.recovery.recover("tcp:127.0.0.1:0");
  expect(address).not.toBe(journey.address);
  await source.recovery.recover(address);
  await journey.expectArrived();
});

test(`nobody else may recover, nor the source where nobody listens; it stays paused (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay);
  await journey.moving();
  relay.do("cut");
  await journey.paused();
  await using other = await Relay.start();
  const stranger = outcomeOf(
    migrateOut(await strangeGuest(), journey.address, { ...LIMITS, connectTimeoutMs: 2000 }),
  );
  expect((await stranger).failure?.code).toBe("TOKEN_REFUSED");
  const nowhere = other.before("tcp:127.0.0.1:1");
  await expect(journey.source.recovery.recover(nowhere)).rejects.toThrow();
  await journey.paused();
  await journey.source.recovery.recover(journey.address);
  await journey.expectArrived();
});

async function strangeGuest(): Promise<MemoryGuest> {
  const guest = await MemoryGuest.create(SHAPE);
  onTestFinished(() => guest.stop());
  return guest;
}

test(`a pause that nobody ends is ended by recover-timeout, or by a cancel (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay, { recoverTimeoutMs: 300 });
  await journey.moving();
  relay.do("cut");
  await journey.paused();
  journey.cancel.destination.abort();
  const outcomes = await journey.outcomes;
  expect(outcomes.map(({ failure }) => failure?.code)).toEqual([
    "POSTCOPY_INTERRUPTED",
    "POSTCOPY_INTERRUPTED",
  ]);
  expect([journey.guest.running, journey.to.guest.running]).toEqual([false, true]);
});

test(`a pause that is given up as it begins leaves nothing behind (SEED=${seed})`, async () => {
  const timers = pendingTimers();
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay);
  await journey.moving();
  // The source is told why, so that it has nobody to ask and to tell: only its threads end late.
  journey.destination.recovery.pause();
  await journey.source.phases.reach("postcopy-paused");
  journey.source.recovery.giveUp();
  await journey.destination.phases.reach("postcopy-paused");
  journey.destination.recovery.giveUp();
  const outcomes = await journey.outcomes;
  expect(outcomes.map(({ failure }) => failure?.code)).toEqual([
    "POSTCOPY_INTERRUPTED",
    "POSTCOPY_INTERRUPTED",
  ]);
  await journey.guest.stop();
  await journey.to.discard();
  const deadline = new Deadline(10_000);
  while (timers.size > 0 && !deadline.passed) await turn();
  expect([...timers]).toEqual([]);
});

/** What is still to be called from now on, by how long that was to take; until the test ends. */
function pendingTimers(): ReadonlySet<{ ms: number }> {
  const pending = new Set<{ ms: number }>();
  const noted = (ms: number, end: () => void): (() => void) => {
    const timer = { ms };
    pending.add(timer);
    return () => {
      pending.delete(timer);
      end();
    };
  };
  onTestFinished(
    useClock({
      nowMs: () => Number(process.hrtime.bigint() / 1000n) / 1000,
      cpuMs: () => 0,
      after(ms, call) {
        const timer = setTimeout(() => {
          over();
          call();
        }, ms);
        const over = noted(ms, () => clearTimeout(timer));
        return over;
      },
      every(ms, call) {
        const timer = setInterval(call, ms);
        return noted(ms, () => clearInterval(timer));
      },
    }),
  );
  return pending;
}

test(`a lane that falls silent breaks the link, though all others live (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const live = new LiveParameters();
  relay.at({ channel: 3, frame: "request", where: "before" }, "stall");
  const journey = await Journey.begin(relay, { live }, { channelTimeoutMs: 1000 });
  // What bulk brings must not come first.
  await journey.source.phases.begun("pause");
  live.change({ maxBandwidthBytesPerSecond: MIB / 2 });
  await journey.paused();
  live.change({ maxBandwidthBytesPerSecond: 0 });
  expect(journey.destination.recovery.pausedFor?.toJSON()).toMatchObject({
    code: "CHANNEL_STALLED",
    facts: { channel: 3 },
  });
  await journey.source.recovery.recover(journey.address);
  await journey.expectArrived();
});

test(`a cancel that came too late does not turn a broken link into a lost guest (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay);
  await journey.moving();
  for (const end of ["source", "destination"] as const) journey.cancel[end].abort();
  relay.do("cut");
  await journey.paused();
  await journey.source.recovery.recover(journey.address);
  await journey.expectArrived();
});

test(`a pause can be given up by whoever has cancelled too early for it (SEED=${seed})`, async () => {
  await using relay = await Relay.start();
  const journey = await Journey.begin(relay);
  await journey.moving();
  for (const end of ["source", "destination"] as const) {
    journey.cancel[end].abort();
    journey[end].recovery.giveUp(); // There is no pause yet.
  }
  relay.do("cut");
  await journey.paused();
  journey.source.recovery.giveUp();
  journey.destination.recovery.giveUp();
  const outcomes = await journey.outcomes;
  expect(outcomes.map(({ failure }) => failure?.code)).toEqual([
    "POSTCOPY_INTERRUPTED",
    "POSTCOPY_INTERRUPTED",
  ]);
});
