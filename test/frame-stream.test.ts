import { once } from "node:events";
import type { Socket } from "node:net";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { useClock } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { FRAMES, type FrameName } from "../channels/frame.ts";
import { FrameStream } from "../channels/frame-stream.ts";
import { encodeFailure } from "../channels/messages.ts";
import { connectionOf, SocketPairs } from "./fixtures/wire-pair.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { frameBytes, KIND } from "./wire-peer.ts";

const seed = seedFromEnvironment();
const LIMIT_MS = 10_000;
const NOTHING = new Uint8Array(0);

let pairs: SocketPairs;
let checksum: Checksum;
beforeAll(async () => {
  pairs = await SocketPairs.open();
  checksum = await loadChecksum();
});
afterAll(() => pairs.close());

/** A stream, and the socket of a peer that sends it whatever it likes. */
async function makeStream(
  admitted?: readonly FrameName[],
): Promise<{ stream: FrameStream; peer: Socket }> {
  const { near, far } = await pairs.make();
  const options = {
    channel: 0,
    checksum,
    peer: "source",
    ...(admitted ? { admitted } : {}),
  } as const;
  return { stream: new FrameStream(connectionOf(near), options), peer: far };
}

/** Two streams that talk to each other. */
async function makeStreams(): Promise<{ near: FrameStream; far: FrameStream }> {
  const pair = await pairs.make();
  const options = { channel: 0, checksum };
  return {
    near: new FrameStream(connectionOf(pair.near), { ...options, peer: "destination" }),
    far: new FrameStream(connectionOf(pair.far), { ...options, peer: "source" }),
  };
}

function controlFrame(kind: number, sequence: number, body: Uint8Array = NOTHING): Buffer {
  return frameBytes({ kind, sequence, body, hasChecksum: true });
}

test("frames arrive whole, in order, with both ends counting for themselves", async () => {
  const { near, far } = await makeStreams();
  const body = Uint8Array.from({ length: 300_000 }, (_, index) => index);
  await near.send("round", body.subarray(0, 40), LIMIT_MS);
  await near.send("agree", body, LIMIT_MS);
  await far.send("accept", NOTHING, LIMIT_MS);
  await near.send("commit", NOTHING, LIMIT_MS);
  expect(await far.receive(["round"], LIMIT_MS)).toEqual({
    name: "round",
    body: body.subarray(0, 40),
  });
  expect(await far.receive(["agree"], LIMIT_MS)).toEqual({ name: "agree", body });
  expect(await near.receive(["accept"], LIMIT_MS)).toEqual({ name: "accept", body: NOTHING });
  expect(await far.receive(["commit"], LIMIT_MS)).toEqual({ name: "commit", body: NOTHING });
  expect(near.sentBytes).toBe(far.receivedBytes);
  expect(far.sentBytes).toBe(24);
});

test("what is sent is a frame with a checksum, as any other implementation makes it", async () => {
  const { stream, peer } = await makeStream();
  const wanted = [
    controlFrame(KIND.round, 0, new Uint8Array(40).fill(7)),
    controlFrame(KIND.ready, 1),
  ];
  await stream.send("round", new Uint8Array(40).fill(7), LIMIT_MS);
  await stream.send("ready", NOTHING, LIMIT_MS);
  stream.close();
  const found: Buffer[] = [];
  for await (const bytes of peer) found.push(bytes as Buffer);
  expect(Buffer.concat(found).toString("hex")).toBe(Buffer.concat(wanted).toString("hex"));
});

test("a frame that arrives byte by byte is the same frame", async () => {
  const { stream, peer } = await makeStream();
  const receiving = stream.receive(["round"], LIMIT_MS);
  const body = new Uint8Array(40).fill(9);
  for (const byte of controlFrame(KIND.round, 0, body)) {
    peer.write(Uint8Array.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(await receiving).toEqual({ name: "round", body });
});

test(`frames are the same however the bytes are divided (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const { stream, peer } = await makeStream();
  const sizes = Array.from({ length: 200 }, () => random.below(2000));
  const bytes = Buffer.concat(
    sizes.map((size, index) => controlFrame(KIND.piece, index, new Uint8Array(size).fill(index))),
  );
  peer.resume();
  const writing = (async () => {
    for (let at = 0; at < bytes.length; ) {
      const end = at + 1 + random.below(3000);
      peer.write(bytes.subarray(at, end));
      at = end;
      await new Promise((resolve) => setImmediate(resolve));
    }
  })();
  for (const [index, size] of sizes.entries()) {
    const { body } = await stream.receive(["piece"], LIMIT_MS);
    expect(body.length).toBe(size);
    expect(body.every((byte) => byte === (index & 255))).toBe(true);
  }
  await writing;
});

test("a peer that sends faster than anybody asks is made to wait, and nothing is lost", async () => {
  const { stream, peer } = await makeStream();
  const count = 400;
  const body = new Uint8Array(100_000);
  const bytes = Buffer.concat(
    Array.from({ length: count }, (_, index) => controlFrame(KIND.piece, index, body)),
  );
  peer.write(bytes);
  for (let asked = 0; asked < 2; asked += 1) await stream.receive(["piece"], LIMIT_MS);
  // Far less than what was sent has been taken in: some 32 frames and what the system holds.
  expect(stream.receivedBytes).toBeLessThan(bytes.length / 4);
  for (let asked = 2; asked < count; asked += 1) {
    expect((await stream.receive(["piece"], LIMIT_MS)).body.length).toBe(body.length);
  }
  expect(stream.receivedBytes).toBe(bytes.length);
});

test("pings show only in the time of the last sign of life", async () => {
  const { near, far } = await makeStreams();
  for (let sent = 0; sent < 3; sent += 1) await near.send("ping", NOTHING, LIMIT_MS);
  await near.send("commit", NOTHING, LIMIT_MS);
  expect((await far.receive(["commit"], LIMIT_MS)).name).toBe("commit");
  expect(far.heardAtMs).toBeGreaterThanOrEqual(near.spokeAtMs);
});

test("a frame that is not wanted is FRAME_UNEXPECTED and says what was", async () => {
  const { near, far } = await makeStreams();
  await near.send("commit", NOTHING, LIMIT_MS);
  await expect(far.receive(["round", "devices"], LIMIT_MS)).rejects.toMatchObject({
    code: "FRAME_UNEXPECTED",
    facts: { channel: 0, frame: "commit", wanted: "round or devices" },
  });
});

test("a peer that says nothing is PEER_SILENT after the limit", async () => {
  const { stream } = await makeStream();
  await expect(stream.receive(["accept", "ready"], 20)).rejects.toMatchObject({
    code: "PEER_SILENT",
    facts: { waitingFor: "accept or ready", limitMs: 20 },
  });
});

test("a frame that comes after nobody waited any more is there for the next one", async () => {
  const { near, far } = await makeStreams();
  await expect(far.receive(["accept"], 10)).rejects.toMatchObject({ code: "PEER_SILENT" });
  await near.send("accept", NOTHING, LIMIT_MS);
  expect((await far.receive(["accept"], LIMIT_MS)).name).toBe("accept");
});

test("a peer that does not read is CHANNEL_STALLED after the limit", async () => {
  const { stream } = await makeStream();
  const body = new Uint8Array(FRAMES.piece.bodyBytesMax);
  const sending = async (): Promise<void> => {
    for (;;) await stream.send("piece", body, 20);
  };
  await expect(sending()).rejects.toMatchObject({
    code: "CHANNEL_STALLED",
    facts: { channel: 0, direction: "write", limitMs: 20 },
  });
});

test("a failure that the peer tells ends the stream, after the frames before it", async () => {
  const { stream, peer } = await makeStream();
  const told = new MigrationError("CANCELLED", { phase: "precopy" });
  peer.write(
    Buffer.concat([
      controlFrame(KIND.devices, 0, new Uint8Array(16)),
      controlFrame(KIND.failure, 1, encodeFailure(told)),
      controlFrame(KIND.commit, 2),
    ]),
  );
  const failure = { code: "CANCELLED", facts: { phase: "precopy" }, at: "source" };
  await expect(stream.failed).rejects.toMatchObject(failure);
  expect((await stream.receive(["devices"], LIMIT_MS)).name).toBe("devices");
  await expect(stream.receive(["commit"], LIMIT_MS)).rejects.toMatchObject(failure);
  await expect(stream.send("ready", NOTHING, LIMIT_MS)).rejects.toMatchObject(failure);
});

test("the first failure stays, whatever comes after it", async () => {
  const { stream, peer } = await makeStream();
  peer.write(Buffer.concat([Buffer.alloc(24, 1), Buffer.alloc(2 ** 20)]));
  const corrupt = { code: "FRAME_CORRUPT", facts: { channel: 0, field: "magic" } };
  await expect(stream.failed).rejects.toMatchObject(corrupt);
  peer.destroy();
  await once(peer, "close");
  stream.close();
  await expect(stream.receive(["accept"], LIMIT_MS)).rejects.toMatchObject(corrupt);
});

/** What must not pass, and what it is. */
const BREACHES: readonly (readonly [what: string, bytes: Buffer, failure: object])[] = [
  [
    "a wrong checksum",
    frameBytes({
      kind: KIND.round,
      sequence: 0,
      body: Buffer.alloc(40),
      hasChecksum: true,
      checksum: 5n,
    }),
    { code: "CHECKSUM_MISMATCH", facts: { channel: 0, sequence: 0 } },
  ],
  [
    "no checksum",
    frameBytes({ kind: KIND.accept, sequence: 0, body: NOTHING, hasChecksum: false }),
    { code: "FRAME_UNEXPECTED", facts: { frame: "accept" } },
  ],
  [
    "a frame of bulk channels",
    controlFrame(KIND.pages, 0, Buffer.alloc(20)),
    { code: "FRAME_UNEXPECTED", facts: { frame: "pages" } },
  ],
  [
    "a sequence number ahead",
    controlFrame(KIND.accept, 1),
    { code: "FRAME_CORRUPT", facts: { field: "sequence", found: 1 } },
  ],
  [
    "a failure that nobody knows",
    controlFrame(KIND.failure, 0, Buffer.from("0300414243020000", "hex")),
    { code: "FRAME_CORRUPT", facts: { field: expect.any(String) } },
  ],
  [
    "a length that no frame has",
    Buffer.from("6d666431030100000000000000ffffff0000000000000000", "hex"),
    { code: "FRAME_CORRUPT", facts: { field: 'length of "agree"' } },
  ],
];

for (const [what, bytes, failure] of BREACHES) {
  test(`${what} ends the stream`, async () => {
    const { stream, peer } = await makeStream();
    peer.write(bytes);
    await expect(stream.failed).rejects.toMatchObject(failure);
  });
}

test("a peer that cannot be understood can still be told so, and nothing else", async () => {
  const { stream, peer } = await makeStream();
  peer.write(Buffer.alloc(24, 1));
  const corrupt = { code: "FRAME_CORRUPT" };
  await expect(stream.failed).rejects.toMatchObject(corrupt);
  await expect(stream.send("accept", NOTHING, LIMIT_MS)).rejects.toMatchObject(corrupt);
  const body = encodeFailure(new MigrationError("INTERNAL", { reason: "garbage" }));
  await stream.send("failure", body, LIMIT_MS);
  stream.close();
  const found: Buffer[] = [];
  for await (const bytes of peer) found.push(bytes as Buffer);
  expect(Buffer.concat(found)).toEqual(controlFrame(KIND.failure, 0, body));
  await expect(stream.send("failure", body, LIMIT_MS)).rejects.toMatchObject(corrupt);
});

test("a stranger is held to the frames that are admitted, before a body is kept", async () => {
  const { stream, peer } = await makeStream(["hello"]);
  peer.write(controlFrame(KIND.agree, 0, new Uint8Array(300_000)).subarray(0, 24));
  await expect(stream.failed).rejects.toMatchObject({
    code: "FRAME_UNEXPECTED",
    facts: { frame: "agree", wanted: "hello" },
  });
});

test("after a stranger is known, every frame of its lane is admitted", async () => {
  const { stream, peer } = await makeStream(["hello"]);
  peer.write(controlFrame(KIND.hello, 0, new Uint8Array(56)));
  await stream.receive(["hello"], LIMIT_MS);
  stream.admitAll();
  peer.write(controlFrame(KIND.agree, 1, new Uint8Array(8)));
  expect((await stream.receive(["agree"], LIMIT_MS)).body.length).toBe(8);
});

test("what is read along with WELCOME is let in as it is after it", async () => {
  const { stream, peer } = await makeStream(["welcome", "failure"]);
  const welcome = controlFrame(KIND.welcome, 0, new Uint8Array(36));
  const accept = controlFrame(KIND.accept, 2);
  peer.write(Buffer.concat([welcome, controlFrame(KIND.ping, 1), accept]));
  expect((await stream.receive(["welcome"], LIMIT_MS)).name).toBe("welcome");
  expect((await stream.receive(["accept"], LIMIT_MS)).name).toBe("accept");
});

test("a closed connection is CHANNEL_LOST for whoever waits and whoever comes", async () => {
  const { stream, peer } = await makeStream();
  const waiting = stream.receive(["accept"], LIMIT_MS);
  peer.end();
  const lost = { code: "CHANNEL_LOST", facts: { channel: 0, reason: "the other end closed it" } };
  await expect(waiting).rejects.toMatchObject(lost);
  await expect(stream.receive(["accept"], LIMIT_MS)).rejects.toMatchObject(lost);
  await expect(stream.send("commit", NOTHING, LIMIT_MS)).rejects.toMatchObject(lost);
});

test("closing it here is CHANNEL_LOST, once, and closes the socket", async () => {
  const { stream, peer } = await makeStream();
  const waiting = stream.receive(["accept"], LIMIT_MS);
  stream.close();
  stream.close();
  const lost = { code: "CHANNEL_LOST", facts: { reason: "this end closed it" } };
  await expect(waiting).rejects.toMatchObject(lost);
  peer.resume();
  await once(peer, "close");
});

test("released descriptors come with the numbers at which a thread goes on", async () => {
  const { stream, peer } = await makeStream();
  peer.write(controlFrame(KIND.hello, 0, new Uint8Array(56)));
  await stream.receive(["hello"], LIMIT_MS);
  await stream.send("welcome", new Uint8Array(36), LIMIT_MS);
  const { readFd, writeFd, isDeep, ...sequences } = stream.release();
  expect(readFd).toBe(writeFd);
  expect(readFd).toBeGreaterThan(2);
  expect(isDeep).toBe(false); // A unix socket.
  expect(sequences).toEqual({ readSequence: 1, writeSequence: 1 });
});

test("bytes before a thread has the channel are FRAME_UNEXPECTED, whole frames or not", async () => {
  const hello = controlFrame(KIND.hello, 0, new Uint8Array(56));
  const early = [controlFrame(KIND.agree, 1, new Uint8Array(9)), Buffer.from("mfd1"), hello];
  for (const bytes of early) {
    const { stream, peer } = await makeStream();
    peer.write(Buffer.concat([hello, bytes]));
    await stream.receive(["hello"], LIMIT_MS);
    const failure = { code: bytes === hello ? "FRAME_CORRUPT" : "FRAME_UNEXPECTED" };
    expect(() => stream.release()).toThrow(expect.objectContaining(failure));
  }
});

test("a stream that has ended releases nothing, but says what ended it", async () => {
  const { stream, peer } = await makeStream();
  peer.end();
  await expect(stream.failed).rejects.toMatchObject({ code: "CHANNEL_LOST" });
  const lost = expect.objectContaining({ code: "CHANNEL_LOST" });
  expect(() => stream.release()).toThrow(lost);
  stream.close();
  expect(() => stream.release()).toThrow(lost);
});

test("a frame has gone when the peer has it, also if its connection was lost before it said so", async () => {
  const pair = await pairs.make();
  const options = { channel: 0, checksum, peer: "destination" } as const;
  const stream = new FrameStream(connectionOf(pair.near), options);
  stream.mayRejoin(() => {});
  vi.spyOn(pair.near, "write").mockReturnValue(true); // It is never said to be written.
  const sending = [
    stream.send("round", new Uint8Array(40), LIMIT_MS),
    stream.send("commit", NOTHING, LIMIT_MS),
  ];
  stream.interrupt(new MigrationError("CHANNEL_LOST", { channel: 0, reason: "cut" }));
  const { near, far } = await makeStreams();
  stream.adopt(near, 1);
  await Promise.all(sending);
  expect((await far.receive(["round", "commit"], LIMIT_MS)).name).toBe("commit");
  stream.close();
});

test("a peer that loses its connection again and again is given up", async () => {
  const { near } = await makeStreams();
  let interruptions = 0;
  near.mayRejoin(() => {
    interruptions += 1;
  });
  const reason = new MigrationError("CHANNEL_LOST", { channel: 0, reason: "cut" });
  for (;;) {
    near.interrupt(reason);
    if (near.failure !== null) break;
    near.adopt((await makeStreams()).near, 0);
  }
  expect(near.failure).toBe(reason);
  expect(interruptions).toBe(16);
  near.close();
});

/** What comes of a wait of 500 ms: by when the peer was heard, and by when it is known. */
async function waitFor(heardAfterMs: number, heardAgainAfterMs: number | null): Promise<unknown[]> {
  let now = 1000;
  const timers: (() => void)[] = [];
  const restore = useClock({
    nowMs: () => now,
    cpuMs: () => 0,
    after: (ms, call) => {
      timers.push(() => {
        now += ms;
        call();
      });
      return () => {};
    },
    every: () => () => {},
  });
  onTestFinished(restore);
  const { near } = await makeStreams();
  let lost = 0;
  near.mayRejoin(() => {
    lost += 1;
  });
  let told = "waits";
  const receiving = near.receive(["piece"], 500).catch(({ code }: MigrationError) => {
    told = code;
  });
  near.heardAtMs = now + heardAfterMs;
  while (told === "waits" && lost === 0) {
    const timer = must(timers.shift(), "it waits for something");
    timer();
    await new Promise((resolve) => setImmediate(resolve));
    if (heardAgainAfterMs !== null) near.heardAtMs = 1000 + heardAgainAfterMs;
  }
  const outcome = [told, lost, now - 1000];
  near.close();
  await receiving;
  restore();
  return outcome;
}

test("a peer that falls silent while it is waited for is lost, one that is there is late", async () => {
  expect(await waitFor(0, null)).toEqual(["waits", 1, 500]);
  expect(await waitFor(1, null)).toEqual(["waits", 1, 501]);
  expect(await waitFor(250, null)).toEqual(["waits", 1, 750]);
  expect(await waitFor(251, null)).toEqual(["PEER_SILENT", 0, 500]);
  expect(await waitFor(499, null)).toEqual(["PEER_SILENT", 0, 500]);
  // It turns out that it is there.
  expect(await waitFor(200, 600)).toEqual(["PEER_SILENT", 0, 700]);
});
