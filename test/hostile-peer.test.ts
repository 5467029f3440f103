import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { loadChecksum } from "../channels/checksum.ts";
import type { Listener } from "../channels/connection.ts";
import { encodeFailure } from "../channels/messages.ts";
import { Doorman } from "../engine/doorman.ts";
import {
  expectArrived,
  expectMigrates,
  type Listening,
  makeSource,
  startDestination,
  turnedAwayWith,
} from "./fixtures/wire-hostile.ts";
import { agreeBody, dial, NO_TOKEN, pagesBody, WireSource } from "./fixtures/wire-source.ts";
import { bytesOf } from "./harness/guest-memory.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import {
  bodyOf,
  ENCODING,
  frameBytes,
  type HelloFields,
  helloBody,
  KIND,
  LANE,
  str,
  u16,
  u32,
  u64,
  type WireBlock,
  type WireConnection,
} from "./wire-peer.ts";

const seed = seedFromEnvironment();

const MAIN_HELLO: HelloFields = {
  migrationId: Buffer.alloc(16, 0x11),
  channel: 0,
  lane: LANE.main,
  token: NO_TOKEN,
};

function helloFrame(changes: Partial<HelloFields> = {}, frame: object = {}): Buffer {
  const body = helloBody({ ...MAIN_HELLO, ...changes });
  return frameBytes({ kind: KIND.hello, sequence: 0, body, hasChecksum: true, ...frame });
}

function noise(size: number): Buffer {
  const bytes = Buffer.alloc(size);
  new Prng(seed).bytes(bytes);
  return bytes;
}

function firstFrame(kind: number, body: Uint8Array = Buffer.alloc(0)): Buffer {
  return frameBytes({ kind, sequence: 0, body, hasChecksum: true });
}

/** What strangers send, and the code that turns them away. */
const STRANGERS: readonly (readonly [what: string, bytes: Buffer, code: string])[] = [
  ["garbage", noise(2000), "FRAME_CORRUPT"],
  ["zeros", Buffer.alloc(24), "FRAME_CORRUPT"],
  ["a request for a web page", Buffer.from("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "FRAME_CORRUPT"],
  ["a HELLO without a checksum", helloFrame({}, { hasChecksum: false }), "FRAME_UNEXPECTED"],
  ["a HELLO with a wrong checksum", helloFrame({}, { checksum: 1n }), "CHECKSUM_MISMATCH"],
  ["a HELLO as the second frame", helloFrame({}, { sequence: 1 }), "FRAME_CORRUPT"],
  ["a newer version", helloFrame({ versionMin: 2, versionMax: 9 }), "VERSION_UNSUPPORTED"],
  ["an older version", helloFrame({ versionMin: 0, versionMax: 0 }), "VERSION_UNSUPPORTED"],
  ["versions the wrong way round", helloFrame({ versionMin: 2 }), "FRAME_CORRUPT"],
  ["a lane that does not exist", helloFrame({ lane: 9 }), "FRAME_CORRUPT"],
  ["a main channel with a number", helloFrame({ channel: 1 }), "FRAME_CORRUPT"],
  [
    "a source that comes back to another migration",
    helloFrame({ token: Buffer.alloc(32, 1) }),
    "TOKEN_REFUSED",
  ],
  ["a bulk channel without a number", helloFrame({ lane: LANE.bulk }), "FRAME_CORRUPT"],
  ["channel 65", helloFrame({ lane: LANE.bulk, channel: 65 }), "FRAME_CORRUPT"],
  ["a bulk channel of nobody", helloFrame({ lane: LANE.bulk, channel: 1 }), "TOKEN_REFUSED"],
  ["a lane for later", helloFrame({ lane: 3, channel: 1 }), "TOKEN_REFUSED"],
  ["AGREE instead of HELLO", firstFrame(KIND.agree, Buffer.alloc(20)), "FRAME_UNEXPECTED"],
  ["PING instead of HELLO", firstFrame(KIND.ping), "FRAME_UNEXPECTED"],
  ["PAGES instead of HELLO", firstFrame(KIND.pages, Buffer.alloc(20)), "FRAME_UNEXPECTED"],
  [
    "FAILURE instead of HELLO",
    firstFrame(KIND.failure, encodeFailure(new MigrationError("CANCELLED", { phase: "x" }))),
    "FRAME_UNEXPECTED",
  ],
  ["half a HELLO and the end", helloFrame().subarray(0, 50), "closed"],
  ["nothing and the end", Buffer.alloc(0), "closed"],
];

/** Visits a destination and says with what it was turned away. */
async function visit(address: string, bytes: Uint8Array, isOver: boolean): Promise<string> {
  const stranger = await dial(address);
  await stranger.sendBytes(bytes);
  if (isOver) stranger.end();
  return await turnedAwayWith(stranger);
}

test(`strangers are turned away one after the other, and then the source is served (SEED=${seed})`, async () => {
  const destination = await startDestination();
  for (const [what, bytes, code] of STRANGERS) {
    expect(await visit(destination.address, bytes, code === "closed"), what).toBe(code);
  }
  await expectMigrates(makeSource(seed), destination);
});

test(`a HELLO with more right behind it is refused, and the next source is served (SEED=${seed})`, async () => {
  for (const early of [noise(30), frameBytes({ ...EMPTY, kind: KIND.ping, sequence: 1 })]) {
    const destination = await startDestination();
    const hasty = await dial(destination.address);
    await hasty.sendBytes(Buffer.concat([helloFrame(), early]));
    expect(await turnedAwayWith(hasty)).toMatch(/^(FRAME_\w+|closed)$/);
    await expectMigrates(makeSource(seed), destination);
  }
});

const EMPTY = { body: Buffer.alloc(0), hasChecksum: true };

test(`strangers who say nothing, or half of it, are turned away in time (SEED=${seed})`, async () => {
  const destination = await startDestination({ connectTimeoutMs: 300 });
  const silent = await dial(destination.address);
  const slow = await dial(destination.address);
  await slow.sendBytes(helloFrame().subarray(0, 40));
  expect(await turnedAwayWith(silent)).toBe("PEER_SILENT");
  expect(await turnedAwayWith(slow)).toBe("PEER_SILENT");
  await expectMigrates(makeSource(seed), destination);
});

test(`strangers of every kind, and a flood of them, do not disturb a migration (SEED=${seed})`, async () => {
  const destination = await startDestination();
  const source = makeSource(seed);
  // The guest is paused only when all of them are gone: they surely meet the migration.
  source.misbehave("pause", async (act) => {
    const { address } = destination;
    const visits = STRANGERS.map(([, bytes, code]) => visit(address, bytes, code === "closed"));
    expect(await Promise.all(visits)).toEqual(STRANGERS.map(([, , code]) => code));
    expect(await visit(address, helloFrame(), false)).toBe("TOKEN_REFUSED");
    const flood = await Promise.all(Array.from({ length: 100 }, () => dial(destination.address)));
    for (const stranger of flood) stranger.close();
    return await act();
  });
  await expectMigrates(source, destination);
});

test(`a crowd at the door that says nothing does not keep the source out (SEED=${seed})`, async () => {
  const destination = await startDestination();
  const crowd = await Promise.all(Array.from({ length: 80 }, () => dial(destination.address)));
  const source = makeSource(seed);
  source.misbehave("pause", async (act) => {
    for (const stranger of crowd) stranger.close();
    return await act();
  });
  await expectMigrates(source, destination);
});

/** A wire source with a guest, past the door of a real destination. */
async function connectSource(options: Parameters<typeof startDestination>[0] = {}): Promise<{
  destination: Listening;
  source: WireSource;
  guest: WireBlock[];
  host: ReturnType<typeof makeSource>;
}> {
  const destination = await startDestination(options);
  const host = makeSource(seed);
  const guest = host.blocks.map((block) => ({ ...block, bytes: bytesOf(block) }));
  const source = await WireSource.connect(destination.address);
  return { destination, source, guest, host };
}

/** Sends the rest of a migration whose channels are open. */
async function finish(source: WireSource, guest: readonly WireBlock[]): Promise<void> {
  await source.sendMemory(guest);
  await source.sendDevices(new Map([["cpu", Buffer.from([1])]]));
  await source.handOver();
  source.close();
}

/** Impostors who know more or less of the migration's secrets. */
const IMPOSTORS: readonly (readonly [
  what: string,
  hello: (source: WireSource) => Buffer,
  code: string,
])[] = [
  ["a wrong token", (source) => source.hello(2, { token: Buffer.alloc(32, 1) }), "TOKEN_REFUSED"],
  ["no token", (source) => source.hello(2, { token: NO_TOKEN }), "TOKEN_REFUSED"],
  [
    "a token that is wrong in one bit",
    (source) => {
      const token = Buffer.from(source.token);
      token.writeUInt8(token.readUInt8(31) ^ 1, 31);
      return source.hello(2, { token });
    },
    "TOKEN_REFUSED",
  ],
  [
    "a wrong migration id",
    (source) => source.hello(2, { migrationId: Buffer.alloc(16) }),
    "TOKEN_REFUSED",
  ],
  ["a channel that has joined", (source) => source.hello(1), "TOKEN_REFUSED"],
  ["a channel out of range", (source) => source.hello(3), "TOKEN_REFUSED"],
  ["a lane that is not bulk", (source) => source.hello(2, { lane: 3 }), "TOKEN_REFUSED"],
  [
    "another version",
    (source) => source.hello(2, { versionMin: 2, versionMax: 2 }),
    "VERSION_UNSUPPORTED",
  ],
  [
    "a second main channel",
    (source) => source.hello(0, { lane: LANE.main, token: NO_TOKEN }),
    "TOKEN_REFUSED",
  ],
];

for (const [what, hello, code] of IMPOSTORS) {
  test(`an impostor with ${what} is ${code}, and the migration goes on (SEED=${seed})`, async () => {
    const { destination, source, guest, host } = await connectSource();
    await source.agree({ blocks: guest, channels: 2 });
    await source.openBulk(1);
    const impostor = await dial(destination.address);
    await impostor.send(KIND.hello, hello(source));
    expect(await turnedAwayWith(impostor)).toBe(code);
    await source.openBulk(2);
    await finish(source, guest);
    await expectArrived(host.blocks, destination);
  });
}

test(`no channel is admitted before both ends agreed, not even the right one (SEED=${seed})`, async () => {
  const { destination, source, guest, host } = await connectSource();
  const hasty = await dial(destination.address);
  await hasty.send(KIND.hello, source.hello(1));
  expect(await turnedAwayWith(hasty)).toBe("TOKEN_REFUSED");
  await source.agree({ blocks: guest, channels: 1 });
  await source.openBulk(1);
  await finish(source, guest);
  await expectArrived(host.blocks, destination);
});

test(`a lost channel is joined again by who has the token, and only once it was let go (SEED=${seed})`, async () => {
  const { destination, source, guest, host } = await connectSource();
  await source.agree({ blocks: guest, channels: 2 });
  await source.openBulk(1);
  const lost = await source.openBulk(2);
  source.bulks.pop();
  source.channels.pop();
  const turnedAway = async (changes: object): Promise<void> => {
    const stranger = await dial(destination.address);
    await stranger.send(KIND.hello, source.hello(2, changes));
    expect(await turnedAwayWith(stranger)).toBe("TOKEN_REFUSED");
  };
  await turnedAway({}); // It is there.
  lost.end();
  expect(await source.main.expect(KIND.lost)).toEqual(lostBody(2));
  await turnedAway({}); // The source has not given it up.
  await source.main.send(KIND.lost, lostBody(2));
  expect(await source.main.expect(KIND.gone)).toEqual(lostBody(2));
  await turnedAway({ token: Buffer.alloc(32, 1) });
  await turnedAway({ migrationId: Buffer.alloc(16, 1) });
  await turnedAway({ channel: 3 });
  await source.openBulk(2);
  await turnedAway({}); // Once is enough.
  await finish(source, guest);
  await expectArrived(host.blocks, destination);
});

test(`a channel that is given up in the middle of a frame writes nothing any more (SEED=${seed})`, async () => {
  const { destination, source, guest, host } = await connectSource();
  await source.agree({ blocks: guest, channels: 2 });
  await source.openBulk(1);
  const stalled = await source.openBulk(2);
  source.bulks.pop();
  source.channels.pop();
  const payload = new Uint8Array(4096).fill(0xee);
  const body = pagesBody(0, [{ first: 0, pages: 1, encoding: ENCODING.raw, payload }]);
  const frame = frameBytes({ kind: KIND.pages, sequence: 1, body, hasChecksum: false });
  await stalled.sendBytes(frame.subarray(0, 2000));
  await source.main.send(KIND.lost, lostBody(2));
  await source.main.expect(KIND.gone);
  await stalled.sendBytes(frame.subarray(2000)).catch(() => {});
  await finish(source, guest);
  await expectArrived(host.blocks, destination);
});

/** What an admitted source does wrong, up to where it is told so, and how that is called. */
const SOURCES: readonly (readonly [
  what: string,
  failure: object,
  play: (source: WireSource, guest: readonly WireBlock[]) => Promise<void>,
])[] = [
  [
    "sends garbage after WELCOME",
    { code: "FRAME_CORRUPT", facts: { channel: 0, field: "magic" } },
    ({ main }) => main.sendBytes(Buffer.alloc(100, 1)),
  ],
  [
    "sends pages on the main channel",
    { code: "FRAME_UNEXPECTED", facts: { channel: 0, frame: "pages" } },
    ({ main }) => main.send(KIND.pages, Buffer.alloc(20)),
  ],
  [
    "speaks as a destination",
    { code: "FRAME_UNEXPECTED", facts: { channel: 0, frame: "ready", wanted: "lanes or agree" } },
    ({ main }) => main.send(KIND.ready),
  ],
  [
    "announces a fingerprint that is not of its parameters",
    { code: "FRAME_CORRUPT", facts: { channel: 0, field: "fingerprint", found: "5" } },
    async ({ main }, guest) => {
      const body = agreeBody({ blocks: guest, channels: 1 });
      await main.send(KIND.agree, bodyOf(u64(5), body.subarray(8)));
    },
  ],
  [
    "announces other parameters",
    { code: "PARAMETER_MISMATCH", facts: { parameter: "checksum", source: "maybe" } },
    async ({ main }, guest) => {
      const parameters = [
        ["chunk-size", "2097152"],
        ["checksum", "maybe"],
      ] as const;
      await main.send(KIND.agree, agreeBody({ blocks: guest, channels: 1, parameters }));
    },
  ],
  [
    "announces a billion blocks",
    { code: "FRAME_CORRUPT", facts: { field: "blocks", found: 1_000_000_000 } },
    async ({ main }) => {
      const body = agreeBody({ blocks: [], channels: 1 });
      body.writeUInt32LE(1_000_000_000, body.length - 6); // Behind it is an empty description.
      await main.send(KIND.agree, body);
    },
  ],
  [
    "announces no channels",
    { code: "FRAME_CORRUPT", facts: { field: "channels", found: 0 } },
    ({ main }, guest) => main.send(KIND.agree, agreeBody({ blocks: guest, channels: 0 })),
  ],
  [
    "commits before there is anything",
    {
      code: "FRAME_UNEXPECTED",
      facts: { frame: "commit", wanted: "round or discard or switch or devices or lost" },
    },
    afterAgreement(({ main }) => main.send(KIND.commit)),
  ],
  [
    "tells of a failure that does not exist",
    { code: "FRAME_CORRUPT", facts: { field: "failure code", found: "unknown" } },
    afterAgreement(({ main }) => main.send(KIND.failure, bodyOf(str("OOPS"), str("{}")))),
  ],
  [
    "cancels",
    { code: "CANCELLED", facts: { phase: "precopy" }, at: "source" },
    afterAgreement(({ main }) =>
      main.send(KIND.failure, bodyOf(str("CANCELLED"), str('{"phase":"precopy"}'))),
    ),
  ],
  [
    "sends pages of a block that does not exist",
    { code: "FRAME_CORRUPT", facts: { channel: 1, field: "block", found: 2 } },
    afterAgreement((_source, bulk) => bulk.send(KIND.pages, zeroPages(2, 0), false)),
  ],
  [
    "sends pages beyond a block",
    { code: "FRAME_CORRUPT", facts: { channel: 1, field: "pages beyond the block", found: 6 } },
    afterAgreement((_source, bulk) => bulk.send(KIND.pages, zeroPages(1, 5), false)),
  ],
  [
    "sends control frames on a bulk channel",
    { code: "FRAME_UNEXPECTED", facts: { channel: 1, frame: "commit" } },
    afterAgreement((_source, bulk) => bulk.send(KIND.commit, undefined, false)),
  ],
  ...([0, 2, 65_535] as const).map((channel): (typeof SOURCES)[number] => [
    `gives up channel ${channel} of one`,
    { code: "FRAME_CORRUPT", facts: { channel: 0, field: "channel", found: channel } },
    afterAgreement(({ main }) => main.send(KIND.lost, lostBody(channel))),
  ]),
  [
    "gives up a channel with something in reserved bytes",
    { code: "FRAME_CORRUPT", facts: { channel: 0, field: "reserved" } },
    afterAgreement(({ main }) => main.send(KIND.lost, bodyOf(u16(1), u16(1)))),
  ],
  [
    "gives up a channel before there is any",
    { code: "FRAME_UNEXPECTED", facts: { channel: 0, frame: "lost", wanted: "lanes or agree" } },
    ({ main }) => main.send(KIND.lost, lostBody(1)),
  ],
  [
    "gives up a channel after DEVICES",
    { code: "FRAME_UNEXPECTED", facts: { channel: 0, frame: "lost", wanted: "section" } },
    afterAgreement(async ({ main }) => {
      await main.send(KIND.devices, bodyOf(u32(1), u32(0), u64(0)));
      await main.send(KIND.lost, lostBody(1));
    }),
  ],
  [
    "says GONE, which is for a destination to say",
    { code: "FRAME_UNEXPECTED", facts: { channel: 0, frame: "gone" } },
    afterAgreement(({ main }) => main.send(KIND.gone, lostBody(1))),
  ],
  [
    "gives up the same channel without end",
    { code: "FRAME_CORRUPT", facts: { channel: 0, field: "channels given up", found: 4097 } },
    afterAgreement(async ({ main }) => {
      for (let times = 0; times < 4096; times += 1) {
        await main.send(KIND.lost, lostBody(1));
        await main.expect(KIND.gone);
      }
      await main.send(KIND.lost, lostBody(1));
    }),
  ],
  [
    "announces more device state than is allowed",
    { code: "DEVICES_TOO_LARGE", facts: { bytes: 2 ** 40 } },
    afterAgreement(({ main }) => main.send(KIND.devices, bodyOf(u32(1), u32(0), u64(2 ** 40)))),
  ],
  [
    "announces a million sections",
    { code: "FRAME_CORRUPT", facts: { field: "sections", found: 1_000_000 } },
    afterAgreement(({ main }) => main.send(KIND.devices, bodyOf(u32(1_000_000), u32(0), u64(0)))),
  ],
  [
    "sends a section larger than all of them",
    { code: "FRAME_CORRUPT", facts: { field: "section bytes", found: 11 } },
    afterAgreement(async ({ main }) => {
      await main.send(KIND.devices, bodyOf(u32(1), u32(0), u64(10)));
      await main.send(KIND.section, bodyOf(u64(11), str("cpu")));
    }),
  ],
  [
    "sends an empty piece",
    { code: "FRAME_CORRUPT", facts: { field: "piece bytes", found: 0 } },
    afterAgreement((source) => sendSection(source.main, 10, Buffer.alloc(0))),
  ],
  [
    "sends more than the section has",
    { code: "FRAME_CORRUPT", facts: { field: "piece bytes", found: 11 } },
    afterAgreement((source) => sendSection(source.main, 10, Buffer.alloc(11))),
  ],
  [
    "sends sections that do not add up",
    { code: "FRAME_CORRUPT", facts: { field: "device bytes", found: 3 } },
    afterAgreement(async ({ main }) => {
      await main.send(KIND.devices, bodyOf(u32(1), u32(0), u64(3)));
      await main.send(KIND.section, bodyOf(u64(0), str("cpu")));
    }),
  ],
  [
    "sends a section twice",
    { code: "FRAME_CORRUPT", facts: { field: "section names", found: "not unique" } },
    afterAgreement(async ({ main }) => {
      await main.send(KIND.devices, bodyOf(u32(2), u32(0), u64(0)));
      for (let sent = 0; sent < 2; sent += 1) {
        await main.send(KIND.section, bodyOf(u64(0), str("cpu")));
      }
    }),
  ],
];

type Play = (source: WireSource, bulk: WireConnection) => Promise<void>;

/** A deed that comes after the channels are open. */
function afterAgreement(play: Play): (typeof SOURCES)[number][2] {
  return async (source, guest) => {
    await source.agree({ blocks: guest, channels: 1 });
    await play(source, await source.openBulk(1));
  };
}

function lostBody(channel: number): Buffer {
  return bodyOf(u16(channel), u16(0));
}

function zeroPages(block: number, first: number): Buffer {
  const payload = new Uint8Array(0);
  return pagesBody(block, [{ first, pages: 1, encoding: ENCODING.zero, payload }]);
}

async function sendSection(main: WireConnection, bytes: number, piece: Buffer): Promise<void> {
  await main.send(KIND.devices, bodyOf(u32(1), u32(0), u64(bytes)));
  await main.send(KIND.section, bodyOf(u64(bytes), str("cpu")));
  await main.send(KIND.piece, piece);
}

for (const [what, failure, play] of SOURCES) {
  test(`a source that ${what} is found out, nothing runs, and the next one is served (SEED=${seed})`, async () => {
    const { destination, source, guest } = await connectSource();
    await play(source, guest);
    const outcome = await destination.ended;
    expect(outcome.failure).toMatchObject(failure);
    expect(destination.host.running).toBe(false);
    expect(destination.host.calls).not.toContain("resume");
    expect(destination.host.calls).not.toContain("loadDevices");
    expect(destination.host.blocks).toBeNull();
    const told = await turnedAwayWith(source.main);
    expect([outcome.failure?.code, "closed"]).toContain(told);
    source.close();
    await expectMigrates(makeSource(seed), await startDestination());
  });
}

test("a source that opens fewer channels than it announced is CHANNELS_MISSING", async () => {
  const { destination, source, guest } = await connectSource({ connectTimeoutMs: 300 });
  await source.agree({ blocks: guest, channels: 3 });
  await source.openBulk(2);
  expect((await destination.ended).failure).toMatchObject({
    code: "CHANNELS_MISSING",
    facts: { wanted: 3, found: 1, limitMs: 300 },
  });
  expect(await turnedAwayWith(source.main)).toBe("CHANNELS_MISSING");
  expect(destination.host.calls).toEqual(["prepare", "discard"]);
  source.close();
  await expectMigrates(makeSource(seed), await startDestination());
});

test("a channel that does not wait for WELCOME is refused, and missed", async () => {
  const { destination, source, guest } = await connectSource({ connectTimeoutMs: 300 });
  await source.agree({ blocks: guest, channels: 1 });
  const hasty = await dial(destination.address);
  const hello = { kind: KIND.hello, sequence: 0, body: source.hello(1), hasChecksum: true };
  const pages = { kind: KIND.pages, sequence: 1, body: zeroPages(0, 0), hasChecksum: false };
  await hasty.sendBytes(Buffer.concat([frameBytes(hello), frameBytes(pages)]));
  expect(await turnedAwayWith(hasty)).toMatch(/^(FRAME_UNEXPECTED|closed)$/);
  expect((await destination.ended).failure).toMatchObject({ code: "CHANNELS_MISSING" });
  source.close();
  await expectMigrates(makeSource(seed), await startDestination());
});

test("a source that falls silent is PEER_SILENT, whether it agreed or not", async () => {
  const first = await connectSource({ channelTimeoutMs: 300 });
  expect((await first.destination.ended).failure).toMatchObject({
    code: "PEER_SILENT",
    facts: { waitingFor: "sign of life", limitMs: 300 },
  });
  const second = await connectSource({ stepTimeoutMs: 300 });
  second.source.main.startPings(50);
  expect((await second.destination.ended).failure).toMatchObject({
    code: "PEER_SILENT",
    facts: { waitingFor: "lanes or agree", limitMs: 300 },
  });
  const third = await connectSource({ stepTimeoutMs: 300 });
  await third.source.agree({ blocks: third.guest, channels: 1 });
  await third.source.openBulk(1);
  await third.source.sendMemory(third.guest);
  await third.source.sendDevices(new Map());
  expect((await third.destination.ended).failure).toMatchObject({
    code: "PEER_SILENT",
    facts: { waitingFor: "commit", limitMs: 300 },
  });
  expect(third.destination.host.calls).toEqual(["prepare", "loadDevices", "discard"]);
  for (const { source } of [first, second, third]) {
    source.main.close();
    source.close();
  }
});

test("an address that is opened for a recovery as the migration ends is closed with it", async () => {
  let closed = 0;
  const listener: Listener = {
    address: "tcp:127.0.0.1:1",
    next: () => new Promise<never>(() => {}),
    expect() {},
    close() {
      closed += 1;
    },
  };
  const doorman = new Doorman(listener, { checksum: await loadChecksum(), helloTimeoutMs: 10 });
  expect(doorman.listenAlso(listener)).toBe(true);
  doorman.close({ areThreadsGone: true });
  expect(closed).toBe(2);
  expect(doorman.listenAlso(listener)).toBe(false);
  expect(closed).toBe(3);
});

test("the door stays open for channels however long after the source they come", async () => {
  const limitsMs: number[] = [];
  const listener: Listener = {
    address: "tcp:127.0.0.1:1",
    next(limitMs) {
      limitsMs.push(limitMs);
      return new Promise<never>(() => {});
    },
    expect() {},
    close() {},
  };
  const doorman = new Doorman(listener, { checksum: await loadChecksum(), helloTimeoutMs: 10 });
  await expect(doorman.admitMain(10)).rejects.toMatchObject({ code: "NO_SOURCE" });
  expect(limitsMs).toEqual([Number.POSITIVE_INFINITY]);
});
