import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import type { FailureCode } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";
import { FRAMES, type FrameName, HEADER_BYTES } from "../channels/frame.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import {
  type Arrival,
  addressOf,
  expectArrival,
  startGuestDestination,
  startGuestSource,
  tellToLeave,
  untilIn,
} from "./fixtures/cli-live-pair.ts";
import { Story } from "./fixtures/cli-story.ts";
import { halvesShape } from "./fixtures/memory-guest-shapes.ts";
import { type Point, Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import type { Cli, CliEvent } from "./run-cli.ts";

/**
 * QEMU's scenarios of a link that breaks in post-copy, under their numbers, between two processes:
 * both keep what they have, and go on over another link.
 */
const seed = seedFromEnvironment();

const SHAPE = halvesShape(seed);

const THERE: ParameterOptions = { channelTimeoutMs: 5000, stepTimeoutMs: 10_000 };
const HERE: ParameterOptions = {
  ...THERE,
  channels: 2,
  postcopy: "after-rounds",
  downtimeLimitMs: 1,
  // Slow enough that the link breaks while most is missing.
  maxBandwidthBytesPerSecond: 24 * MIB,
};

/** A guest that goes over, by a link that breaks. */
class Journey implements AsyncDisposable {
  readonly relay: Relay;
  readonly source: Cli;
  readonly destination: Cli;
  readonly #story: Story;

  private constructor(relay: Relay, shape: GuestShape) {
    this.relay = relay;
    this.source = startGuestSource("", { seed, shape });
    this.destination = startGuestDestination(THERE, { vcpuThreads: 2 });
    this.#story = new Story(this.source);
  }

  static async begin(parameters: ParameterOptions = {}, shape = SHAPE): Promise<Journey> {
    const journey = new Journey(await Relay.start(), shape);
    const address = journey.relay.before(await addressOf(journey.destination));
    tellToLeave(journey.source, address, { parameters: { ...HERE, ...parameters } });
    return journey;
  }

  /** The guest runs there, as both ends know. */
  async moving(): Promise<void> {
    await this.#bothIn("postcopy");
  }

  /**
   * The one copy that may run is there, and what it waits for does not stop it from obeying. Returns
   * why they are paused.
   */
  async paused(): Promise<unknown[]> {
    const said = await this.#bothIn("postcopy-paused");
    expect(said.map(({ running }) => running)).toEqual([false, true]);
    return said.map(({ pausedFor }) => pausedFor);
  }

  /** So often, with what was before. */
  async destinationPaused(times: number): Promise<void> {
    let seen = 0;
    await this.destination.waitFor("phase", ({ phase }) => {
      if (phase === "postcopy-paused") seen += 1;
      return seen === times;
    });
  }

  /** Joins again, where it was before or elsewhere. */
  async recover(address = ""): Promise<CliEvent> {
    this.source.tell(`recover ${address}`.trim());
    const told = await this.#story.next("recovered", "not recovered");
    // Shows how it ended, and what it said of that.
    if (told === null) expect(await this.source.exit).toBe("a process that says how that went");
    return must(told, "it says how that went");
  }

  async expectRecovery(address?: string): Promise<void> {
    expect(await this.recover(address)).toMatchObject({ event: "recovered" });
  }

  /** The whole guest is there, and runs in one place. */
  async expectArrival(): Promise<Arrival> {
    return await expectArrival(this.source, this.destination, this.#story);
  }

  /** Of the source. */
  get phases(): string[] {
    return this.source.said.flatMap(({ phase }) => (phase === undefined ? [] : [String(phase)]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.relay[Symbol.asyncDispose]();
    for (const cli of [this.source, this.destination]) await cli[Symbol.asyncDispose]();
  }

  async #bothIn(phase: string): Promise<CliEvent[]> {
    return await Promise.all([this.source, this.destination].map((cli) => untilIn(cli, phase)));
  }
}

for (const [name, parameters] of [
  ["plain", { compression: "none" }],
  ["preempt/recovery/plain: two lanes, zstd", { compression: "zstd", priorityChannels: 2 }],
  ["with deltas, after three rounds", { xbzrle: true, postcopyRounds: 3 }],
  ["with auto", { compression: "auto", postcopyRounds: 2 }],
] as const satisfies readonly [string, ParameterOptions][]) {
  test(`19: postcopy/recovery/${name} (SEED=${seed})`, async () => {
    await using journey = await Journey.begin(parameters);
    await journey.moving();
    journey.relay.do("cut");
    await journey.paused();
    await journey.expectRecovery(await addressOf(journey.destination));
    const { source } = await journey.expectArrival();
    expect(journey.phases.slice(-4)).toEqual([
      "postcopy",
      "postcopy-paused",
      "postcopy-recover",
      "postcopy",
    ]);
    expect(source.channels.map(({ losses }) => losses)).toEqual(
      Array(3 + ("priorityChannels" in parameters ? 2 : 1)).fill(1),
    );
    // Each lane is of a vCPU that waits for page after page.
    for (const { lane, sentBytes } of source.channels) {
      if (lane === "priority") expect(sentBytes).toBeGreaterThan(4 * KIB);
    }
  });
}

/** Of sizes whose pages fill no word of a bitmap, and each with a vCPU. */
const BLOCKS_SHAPE: GuestShape = {
  ...SHAPE,
  blocks: [
    { name: "low", sizeBytes: 2001 * 4 * KIB, pageBytes: 4 * KIB },
    { name: "rom", sizeBytes: 4 * KIB, pageBytes: 4 * KIB },
    { name: "high", sizeBytes: 77 * 64 * KIB, pageBytes: 64 * KIB },
  ],
  vcpus: [
    { block: "low", pageCount: 2001, pattern: "stride" } as const,
    { block: "high", pageCount: 77, pattern: "sweep" } as const,
  ].map((vcpu) => ({
    ...vcpu,
    firstPage: 0,
    rateBytesPerSecond: 64 * MIB,
    changedBytes: 64,
  })),
};

test(`19, 21: postcopy/recovery, multifd+postcopy/recovery: several blocks, of odd numbers of pages (SEED=${seed})`, async () => {
  await using journey = await Journey.begin({ channels: 4 }, BLOCKS_SHAPE);
  journey.relay.isMended = true;
  for (let cut = 1; cut <= 2; cut += 1) {
    await journey.moving();
    journey.relay.do("cut");
    await journey.paused();
    await journey.expectRecovery();
  }
  await journey.expectArrival();
  expect(journey.phases.filter((phase) => phase === "postcopy-recover")).toHaveLength(2);
});

const LANE = 3;

function noise(bytes: number): Buffer {
  const all = Buffer.alloc(bytes);
  new Prng(seed).bytes(all);
  return all;
}

/** The frame's header, and anything behind it. */
const behindHeader = (frame: Buffer): Buffer =>
  Buffer.concat([frame.subarray(0, HEADER_BYTES), noise(frame.length - HEADER_BYTES)]);

/** The frame, as if it were of another kind. */
function asKind(kind: number, frame: Buffer): Buffer {
  const other = Buffer.from(frame);
  other.writeUInt8(kind, 4);
  return other;
}

/** What a lane may bring instead of a frame, and what whoever gets it says. */
const GARBAGE = [
  ["request", (frame) => noise(frame.length), "FRAME_CORRUPT"],
  ["request", behindHeader, "FRAME_CORRUPT"],
  ["request", (frame) => asKind(FRAMES.pages.kind, frame), "FRAME_UNEXPECTED"],
  ["pages", (frame) => noise(frame.length), "FRAME_CORRUPT"],
  ["pages", behindHeader, "FRAME_CORRUPT"],
  ["pages", (frame) => asKind(FRAMES.discard.kind, frame), "FRAME_UNEXPECTED"],
] as const satisfies readonly [FrameName, (frame: Buffer) => Buffer, FailureCode][];

test(`garbage on a priority lane is refused, and each time a recovery goes on with all memory as it was (SEED=${seed})`, async () => {
  await using journey = await Journey.begin({ maxBandwidthBytesPerSecond: 6 * MIB });
  journey.relay.isMended = true;
  for (const [frame, forged, code] of GARBAGE) {
    await journey.moving();
    journey.relay.forge(LANE, frame, forged);
    expect(await journey.paused(), frame).toContain(code);
    journey.destination.tell("check");
    await journey.expectRecovery();
  }
  const { events } = await journey.expectArrival();
  const checked = events.filter(({ event }) => event === "checked");
  expect(checked.map(({ problems }) => problems)).toEqual(GARBAGE.map(() => []));
});

/**
 * At which points the recoveries break, one after the other; and how often the destination has paused
 * by then: it may not have known that somebody would join.
 */
for (const [name, points, pauses] of [
  [
    "handshake: WELCOME, RECOVER, half of what is missing, RECOVERED, a channel, a lane",
    [
      { channel: 0, frame: "welcome", where: "before" },
      { channel: 0, frame: "recover", where: "before" },
      { channel: 0, frame: "missing", where: "middle" },
      { channel: 0, frame: "recovered", where: "before" },
      { channel: 1, frame: "hello", where: "middle" },
      { channel: 3, frame: "welcome", where: "before" },
    ],
    [1, 1, 2, 3, 4, 5],
  ],
  [
    "reconnect: first pages, the end of a channel",
    [
      { channel: 2, frame: "pages", nth: 2, where: "middle" },
      { channel: 1, frame: "end", where: "before" },
    ],
    [2, 3],
  ],
  [
    "again and again: RECOVERED, a lane, then first pages",
    [
      { channel: 0, frame: "recovered", where: "before" },
      { channel: 3, frame: "welcome", where: "before" },
      { channel: 2, frame: "pages", nth: 2, where: "middle" },
    ],
    [2, 3, 4],
  ],
] as const satisfies readonly [string, readonly Point[], readonly number[]][]) {
  test(`20: postcopy/recovery/double-failures/${name} (SEED=${seed})`, async () => {
    await using journey = await Journey.begin();
    journey.relay.isMended = true;
    await journey.moving();
    journey.relay.do("cut");
    await journey.paused();
    for (const [index, point] of points.entries()) {
      const broken = Promise.withResolvers<void>();
      journey.relay.onDeed = broken.resolve;
      journey.relay.at(point, "cut link");
      await journey.recover();
      await broken.promise;
      await journey.destinationPaused(pauses[index] ?? 0);
      await journey.paused();
    }
    await journey.expectRecovery();
    await journey.expectArrival();
  });
}
