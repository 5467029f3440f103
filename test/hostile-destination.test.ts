import { expect, test } from "vitest";
import type { MigrateOutOptions } from "../engine/source.ts";
import {
  admitBulk,
  admitMain,
  receiveHello,
  type WireListener,
  welcomeBody,
} from "./fixtures/wire-destination.ts";
import {
  expectMigrates,
  makeSource,
  migrateToFake,
  type Script,
  startDestination,
} from "./fixtures/wire-hostile.ts";
import { difference } from "./harness/guest-memory.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { bodyOf, frameBytes, KIND, str, u16, u32, u64, type WireConnection } from "./wire-peer.ts";

const seed = seedFromEnvironment();
const TOKEN = Buffer.alloc(32, 7);

/** Answers HELLO on the main channel. */
function atHello(play: (main: WireConnection) => Promise<void>): Script {
  return async (listener) => {
    const main = await listener.accept();
    await receiveHello(main);
    await play(main);
  };
}

/** Admits the main channel and agrees. */
function atAccept(play: (main: WireConnection, listener: WireListener) => Promise<void>): Script {
  return async (listener) => {
    const { main } = await admitMain(listener);
    main.startPings(50);
    await play(main, listener);
  };
}

/** Admits everything, and plays on the one bulk channel when the first FENCE comes there. */
function atFence(
  play: (bulk: WireConnection, fence: number, main: WireConnection) => Promise<void>,
): Script {
  return async (listener) => {
    const { main, ...secret } = await admitMain(listener);
    main.startPings(50);
    const { bulk } = await admitBulk(listener, secret);
    let frame = await bulk.receive();
    while (frame.kind === KIND.pages) frame = await bulk.receive();
    await play(bulk, frame.body.readUInt32LE(), main);
  };
}

/** Answers the fence, too, and plays on the main channel when all device state has come. */
function atReady(play: (main: WireConnection) => Promise<void>): Script {
  return atFence(async (bulk, fence, main) => {
    await bulk.send(KIND.fenced, u32(fence));
    for (let next = await bulk.receive(); next.kind !== KIND.end; next = await bulk.receive()) {
      if (next.kind === KIND.fence) await bulk.send(KIND.fenced, next.body);
    }
    let frame = await main.receive();
    while (frame.kind === KIND.round) frame = await main.receive();
    let bytes = Number(frame.body.readBigUInt64LE(8));
    for (let sections = frame.body.readUInt32LE(); sections > 0; sections -= 1) {
      let left = Number((await main.expect(KIND.section)).readBigUInt64LE());
      for (bytes -= left; left > 0; ) left -= (await main.expect(KIND.piece)).length;
    }
    if (bytes !== 0) throw new Error("sections do not add up");
    await play(main);
  });
}

function noise(size: number): Buffer {
  const bytes = Buffer.alloc(size);
  new Prng(seed).bytes(bytes);
  return bytes;
}

/** What a source is told that is no failure it could take over. */
const BAD_FAILURES: readonly (readonly [what: string, body: Buffer, facts: object])[] = [
  ["a code that nobody knows", told("OOPS", "{}"), { field: "failure code", found: "unknown" }],
  ["facts that are missing", told("CANCELLED", "{}"), { field: "failure facts" }],
  ["facts that are no JSON", told("CANCELLED", "{phase"), { field: "failure facts" }],
  [
    "facts that are objects",
    told("CANCELLED", '{"phase":{"toString":null}}'),
    { field: "failure facts" },
  ],
  [
    "the claim that nobody knows who owns the guest",
    told("HANDOVER_UNKNOWN", '{"reason":"x"}'),
    { field: "failure code", found: "HANDOVER_UNKNOWN" },
  ],
  ["half a body", Buffer.from([9, 0, 65]), { field: "body too short for failure code" }],
];

function told(code: string, facts: string): Buffer {
  return bodyOf(str(code), str(facts));
}

interface Case {
  readonly does: string;
  readonly script: Script;
  readonly failure: object;
  readonly options?: MigrateOutOptions;
}

const CASES: readonly Case[] = [
  {
    does: "answers HELLO with garbage",
    script: atHello((main) => main.sendBytes(noise(500))),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 0, field: "magic" } },
  },
  {
    does: "closes at once",
    script: atHello(async (main) => main.end()),
    failure: { code: "CHANNEL_LOST", facts: { channel: 0 } },
  },
  {
    does: "chooses a version that was not offered",
    script: atHello((main) => main.send(KIND.welcome, welcomeBody(TOKEN, 9))),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 0, field: "version", found: 9 } },
  },
  {
    does: "speaks no common version",
    script: atHello((main) =>
      main.send(KIND.failure, told("VERSION_UNSUPPORTED", '{"offered":"1 to 1","supported":"5"}')),
    ),
    failure: {
      code: "VERSION_UNSUPPORTED",
      facts: { offered: "1 to 1", supported: "5" },
      at: "destination",
    },
  },
  {
    does: "does not wait for AGREE",
    script: atHello(async (main) => {
      await main.send(KIND.welcome, welcomeBody(TOKEN));
      await main.send(KIND.running, u64(0));
    }),
    failure: { code: "FRAME_UNEXPECTED", facts: { channel: 0, frame: "running" } },
  },
  {
    does: "says right behind WELCOME, and a sign of life, why it gives up",
    script: atHello(async (main) => {
      const welcome = { kind: KIND.welcome, sequence: 0, body: welcomeBody(TOKEN) };
      const ping = { kind: KIND.ping, sequence: 1, body: Buffer.alloc(0) };
      const failure = { kind: KIND.failure, sequence: 2, body: told("CANCELLED", '{"phase":"x"}') };
      const frames = [welcome, ping, failure].map((frame) => ({ ...frame, hasChecksum: true }));
      await main.sendBytes(Buffer.concat(frames.map(frameBytes)));
    }),
    failure: { code: "CANCELLED", facts: { phase: "x" }, at: "destination" },
  },
  {
    does: "sends garbage behind WELCOME",
    script: atHello(async (main) => {
      await main.send(KIND.welcome, welcomeBody(TOKEN));
      await main.sendBytes(noise(100));
    }),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 0 } },
  },
  {
    does: "sends a frame without a checksum",
    script: atHello((main) => main.send(KIND.welcome, welcomeBody(TOKEN), false)),
    failure: { code: "FRAME_UNEXPECTED", facts: { frame: "welcome" } },
  },
  {
    does: "says nothing after HELLO",
    script: atHello(async (main) => main.closed()),
    failure: { code: "PEER_SILENT", facts: { waitingFor: "welcome", limitMs: 300 } },
    options: { connectTimeoutMs: 300 },
  },
  {
    does: "says nothing after WELCOME",
    script: atHello(async (main) => {
      await main.send(KIND.welcome, welcomeBody(TOKEN));
      await main.closed();
    }),
    failure: { code: "PEER_SILENT", facts: { waitingFor: "sign of life", limitMs: 300 } },
    options: { channelTimeoutMs: 300 },
  },
  {
    does: "only pings after WELCOME",
    script: atHello(async (main) => {
      await main.send(KIND.welcome, welcomeBody(TOKEN));
      main.startPings(50);
      await main.closed();
    }),
    failure: { code: "PEER_SILENT", facts: { waitingFor: "accept", limitMs: 300 } },
    options: { stepTimeoutMs: 300 },
  },
  {
    does: "refuses the bulk channels",
    script: atAccept(async (_main, listener) => {
      const bulk = await listener.accept();
      await receiveHello(bulk);
      await bulk.send(KIND.failure, told("TOKEN_REFUSED", '{"channel":1}'));
    }),
    failure: { code: "TOKEN_REFUSED", facts: { channel: 1 }, at: "destination" },
  },
  {
    does: "says nothing to a bulk channel",
    script: atAccept(async (_main, listener) => (await listener.accept()).closed()),
    failure: { code: "PEER_SILENT", facts: { waitingFor: "welcome", limitMs: 300 } },
    options: { connectTimeoutMs: 300 },
  },
  {
    does: "sends more than WELCOME to a bulk channel",
    script: atAccept(async (_main, listener) => {
      const bulk = await listener.accept();
      await receiveHello(bulk);
      const frame = { body: welcomeBody(Buffer.alloc(32)), hasChecksum: true, sequence: 0 };
      const early = { kind: KIND.fenced, body: u32(1), hasChecksum: true, sequence: 1 };
      const welcome = frameBytes({ ...frame, kind: KIND.welcome });
      await bulk.sendBytes(Buffer.concat([welcome, frameBytes(early)]));
    }),
    failure: { code: "FRAME_UNEXPECTED", facts: { channel: 1 } },
  },
  {
    does: "answers another fence",
    script: atFence((bulk, fence) => bulk.send(KIND.fenced, u32(fence + 1))),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 1, field: "fence number", found: 2 } },
  },
  {
    does: "answers a fence with something else",
    script: atFence((bulk) => bulk.send(KIND.ready)),
    failure: { code: "FRAME_UNEXPECTED", facts: { frame: "ready", wanted: "fenced" } },
  },
  {
    does: "answers a fence with garbage",
    script: atFence((bulk) => bulk.sendBytes(noise(300))),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 1, field: "magic" } },
  },
  {
    does: "answers a fence without the checksum that was agreed",
    script: atFence((bulk, fence) => bulk.send(KIND.fenced, u32(fence), false)),
    failure: { code: "FRAME_CORRUPT", facts: { field: "checksum", found: "missing" } },
    options: { checksum: true },
  },
  {
    does: "answers a fence with a wrong checksum",
    script: atFence(async (bulk, fence) => {
      const frame = { kind: KIND.fenced, sequence: 1, body: u32(fence), hasChecksum: true };
      await bulk.sendBytes(frameBytes({ ...frame, checksum: 1n }));
    }),
    failure: { code: "CHECKSUM_MISMATCH", facts: { channel: 1, sequence: 1 } },
    options: { checksum: true },
  },
  {
    does: "fails at a fence",
    script: atFence((bulk) =>
      bulk.send(KIND.failure, told("MEMORY_FULL", '{"block":"ram","path":"/dev/shm/ram"}')),
    ),
    failure: { code: "MEMORY_FULL", facts: { block: "ram" }, at: "destination" },
  },
  {
    does: "never answers a fence",
    script: atFence(async (bulk) => bulk.closed()),
    failure: { code: "CHANNEL_STALLED", facts: { channel: 1, direction: "read", limitMs: 300 } },
    options: { stepTimeoutMs: 300 },
  },
  ...([0, 2, 65_535] as const).map((channel) => ({
    does: `lost channel ${channel} of one`,
    script: atFence(async (_bulk, _fence, main) => {
      await main.send(KIND.lost, bodyOf(u16(channel), u16(0)));
    }),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 0, field: "channel", found: channel } },
  })),
  {
    does: "lets go of a channel that nobody gave up",
    script: atFence(async (_bulk, _fence, main) => {
      await main.send(KIND.gone, bodyOf(u16(1), u16(0)));
    }),
    failure: { code: "FRAME_CORRUPT", facts: { channel: 0, field: "channel that is gone" } },
  },
  {
    does: "never lets go of a channel that it lost",
    script: atFence(async (bulk, fence, main) => {
      await bulk.send(KIND.fenced, u32(fence));
      await bulk.receive();
      await main.send(KIND.lost, bodyOf(u16(1), u16(0)));
      await main.closed();
    }),
    failure: { code: "PEER_SILENT", facts: { waitingFor: "end of channel 1", limitMs: 300 } },
    options: { stepTimeoutMs: 300 },
  },
  {
    does: "says RUNNING instead of READY",
    script: atReady((main) => main.send(KIND.running, u64(0))),
    failure: { code: "FRAME_UNEXPECTED", facts: { frame: "running", wanted: "ready" } },
  },
  {
    does: "never says READY",
    script: atReady(async (main) => main.closed()),
    failure: { code: "PEER_SILENT", facts: { waitingFor: "ready", limitMs: 300 } },
    options: { stepTimeoutMs: 300 },
  },
  ...BAD_FAILURES.map(([what, body, facts]) => ({
    does: `fails with ${what}`,
    script: atReady((main: WireConnection) => main.send(KIND.failure, body)),
    failure: { code: "FRAME_CORRUPT", facts },
  })),
];

for (const { does, script, failure, options } of CASES) {
  test(`a destination that ${does} leaves the guest as it was, and the next one gets it (SEED=${seed})`, async () => {
    const source = makeSource(seed);
    const untouched = makeSource(seed);
    const found = await migrateToFake(source, script, { channels: 1, ...options });
    expect(found).toMatchObject(failure);
    expect(source.running).toBe(true);
    expect(source.tracking).toBe(false);
    const undone = source.calls.filter((call) => call === "resume" || call === "stopDirtyLog");
    const done = source.calls.filter((call) => call === "pause" || call === "startDirtyLog");
    expect(undone.length).toBe(done.length);
    expect(difference(source.blocks, untouched.blocks)).toBeNull();
    source.calls.length = 0;
    await expectMigrates(source, await startDestination());
  });
}

/** What may come, or not, instead of RUNNING: nobody can tell from it where the guest is. */
const AFTER_COMMIT: readonly (readonly [
  what: string,
  play: (main: WireConnection) => Promise<void>,
])[] = [
  ["closes", async (main) => main.end()],
  ["says nothing", async (main) => main.closed()],
  ["sends garbage", (main) => main.sendBytes(noise(100))],
  ["says READY again", (main) => main.send(KIND.ready)],
  [
    "says how many pages it spared, beyond all bounds",
    (main) => main.send(KIND.running, u64(2n ** 60n)),
  ],
  ["fails", (main) => main.send(KIND.failure, told("CANCELLED", '{"phase":"resume"}'))],
];

for (const [what, play] of AFTER_COMMIT) {
  test(`a destination that ${what} after COMMIT leaves the guest paused (SEED=${seed})`, async () => {
    const source = makeSource(seed);
    const script = atReady(async (main) => {
      await main.send(KIND.ready);
      await main.expect(KIND.commit);
      await play(main);
    });
    const found = await migrateToFake(source, script, { channels: 1, stepTimeoutMs: 300 });
    expect(found).toMatchObject({ code: "HANDOVER_UNKNOWN", at: "source" });
    expect(source.running).toBe(false);
    expect(source.calls).not.toContain("resume");
  });
}
