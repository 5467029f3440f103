import { afterAll, beforeAll, expect, test } from "vitest";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import {
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  type Header,
  writeChecksum,
} from "../channels/frame.ts";
import { decodeFailure, decodeHello, encodeFailure, encodeHello } from "../channels/messages.ts";
import {
  decoderOffence,
  type FuzzBlock,
  fenceOffence,
  type Offence,
  receiverOffence,
  streamOffence,
} from "./fixtures/wire-fuzz.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { MESSAGES } from "./fixtures/wire-messages.ts";
import { mutated, type Piece, sealed } from "./fixtures/wire-mutations.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import { receiveBlockOf } from "./fixtures/wire-pipeline.ts";
import { pagesBody, type WireRun } from "./fixtures/wire-source.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { ENCODING, KIND, u32 } from "./wire-peer.ts";

const seed = seedFromEnvironment();
const CHANNEL = 3;

/** What is broken shows within some hundred runs: to miss it in so many takes a broken checker. */
const CANARY_RUNS = 10_000;

let pairs: SocketPairs;
let checksum: Checksum;
beforeAll(async () => {
  pairs = await SocketPairs.open();
  checksum = await loadChecksum();
});
afterAll(() => pairs.close());

/** The first offence of many, with what replays it, or null. */
async function firstOffence(
  runs: number,
  judge: (random: Prng) => Offence | Promise<Offence>,
): Promise<Offence> {
  const random = new Prng(seed);
  for (let run = 0; run < runs; run += 1) {
    const offence = await judge(random);
    if (offence !== null) return `run ${run}: ${offence}`;
  }
  return null;
}

/** Bytes that are noise, or valid ones with something of them changed, cut off or added. */
function spoilt(random: Prng, valid: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(
    random.below(4) === 0 ? random.below(valid.length + 9) : valid.length,
  );
  if (random.below(4) === 0) random.bytes(bytes);
  else bytes.set(valid.subarray(0, bytes.length));
  for (let changes = random.below(3); changes > 0 && bytes.length > 0; changes -= 1) {
    const [one, at] = [new Uint8Array(1), random.below(bytes.length)];
    random.bytes(one);
    bytes.set(random.below(3) === 0 ? [0xff] : one, at);
  }
  return bytes;
}

const HEADER: Header = { name: "round", sequence: 7, length: 40, hasChecksum: true, checksum: 5n };

function headerBytes(header: Header): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  encodeHeader(new DataView(bytes.buffer), 0, header);
  writeChecksum(new DataView(bytes.buffer), 0, header.checksum);
  return bytes;
}

function headerOf(bytes: Uint8Array): Header {
  const whole = new Uint8Array(HEADER_BYTES);
  whole.set(bytes.subarray(0, HEADER_BYTES));
  return decodeHeader(new DataView(whole.buffer), 0, { channel: CHANNEL, sequence: 7 });
}

function spoiltHeader(random: Prng): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  bytes.set(spoilt(random, headerBytes(HEADER)).subarray(0, HEADER_BYTES));
  return bytes;
}

test(`any 24 bytes are a header or FRAME_CORRUPT (SEED=${seed})`, async () => {
  const offence = await firstOffence(20_000, (random) =>
    decoderOffence(spoiltHeader(random), headerOf, headerBytes),
  );
  expect(offence).toBeNull();
});

test(`a header decoder that forgets one check is caught (SEED=${seed})`, async () => {
  // Without the check, as if the byte had been right.
  for (const [field, at] of [
    ["flags", 5],
    ["reserved", 6],
    ["magic", 0],
  ] as const) {
    const right = headerBytes(HEADER)[at] ?? 0;
    const forgetful = (bytes: Uint8Array): Header =>
      headerOf(bytes.slice().fill(right, at, at + 1));
    const offence = await firstOffence(20_000, (random) =>
      decoderOffence(spoiltHeader(random), forgetful, headerBytes),
    );
    expect(offence, field).toContain("accepts bytes that mean something else");
  }
});

for (const { frame, samples, encode, decode } of MESSAGES.filter(
  ({ frame: f }) => f !== "failure",
)) {
  const bodies = samples.slice(0, 2).map((sample) => encode(sample).slice());

  test(`any bytes are a body of "${frame}" or FRAME_CORRUPT (SEED=${seed})`, async () => {
    const offence = await firstOffence(5000, (random) => {
      const bytes = spoilt(random, bodies[random.below(bodies.length)] ?? new Uint8Array(0));
      return decoderOffence(bytes, (body) => decode(body, CHANNEL), encode);
    });
    expect(offence).toBeNull();
  });
}

test(`any bytes are a body of "failure" or FRAME_CORRUPT (SEED=${seed})`, async () => {
  const samples = MESSAGES.find(({ frame }) => frame === "failure")?.samples ?? [];
  const bodies = samples.map((sample) => encodeFailure(sample as never).slice());
  const offence = await firstOffence(20_000, (random) => {
    const bytes = spoilt(random, bodies[random.below(bodies.length)] ?? new Uint8Array(0));
    // JSON has many spellings: what was read must survive being written, not the bytes.
    const decodeTwice = (body: Uint8Array): Uint8Array => {
      const again = encodeFailure(decodeFailure(body, CHANNEL, "source")).slice();
      const twice = encodeFailure(decodeFailure(again, CHANNEL, "source"));
      return Buffer.compare(again, twice) === 0 ? bytes : twice;
    };
    return decoderOffence(bytes, decodeTwice, (same) => same);
  });
  expect(offence).toBeNull();
});

test(`decoders that are nearly right are caught (SEED=${seed})`, async () => {
  const valid = encodeHello({
    versionMin: 1,
    versionMax: 1,
    migrationId: new Uint8Array(16),
    channel: 1,
    lane: "bulk",
    token: new Uint8Array(32),
  }).slice();
  const ignoresTheRest = (body: Uint8Array) => {
    return decodeHello(body.length > valid.length ? body.subarray(0, valid.length) : body, CHANNEL);
  };
  const readsUnchecked = (body: Uint8Array) => {
    const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
    return { ...decodeHello(valid, CHANNEL), versionMin: view.getUint16(0, true) };
  };
  const trustsReserved = (body: Uint8Array) => {
    const mended = body.slice();
    mended.fill(0, 23, 24);
    return decodeHello(mended, CHANNEL);
  };
  for (const [decode, caught] of [
    [ignoresTheRest, "accepts bytes that mean something else"],
    [readsUnchecked, "throws RangeError"],
    [trustsReserved, "accepts bytes that mean something else"],
  ] as const) {
    const offence = await firstOffence(5000, (random) =>
      decoderOffence(spoilt(random, valid), decode, encodeHello),
    );
    expect(offence, decode.name).not.toBeNull();
    if (decode !== readsUnchecked) expect(offence).toContain(caught);
  }
});

/** What a source says on its main channel. */
const MAIN: readonly Piece[] = [
  ...MESSAGES.filter(({ frame }) => !["failure", "fence", "fenced"].includes(frame)).map(
    ({ frame, samples, encode }) => ({
      kind: KIND[frame as "hello"],
      body: Buffer.from(encode(samples[0])),
    }),
  ),
  { kind: KIND.ping, body: Buffer.alloc(0) },
  { kind: KIND.piece, body: Buffer.alloc(3000, 5) },
  { kind: KIND.commit, body: Buffer.alloc(0) },
];
const FAILURE: Piece = {
  kind: KIND.failure,
  body: Buffer.from(MESSAGES.find(({ frame }) => frame === "failure")?.golden ?? "", "hex"),
};
const MAIN_SEALING = { firstSequence: 0, hasChecksum: true };

function spoiltMain(random: Prng): Buffer {
  const pieces = random.below(4) === 0 ? [...MAIN, FAILURE, ...MAIN] : MAIN;
  return mutated(random, pieces, { ...MAIN_SEALING, hasChecksum: random.below(8) > 0 });
}

test(`any bytes on a main channel give the frames that are right, then a typed failure (SEED=${seed})`, async () => {
  const offence = await firstOffence(600, (random) =>
    streamOffence(pairs, spoiltMain(random), checksum),
  );
  expect(offence).toBeNull();
});

test("a main channel that is cut off anywhere gives the frames before, then CHANNEL_LOST", async () => {
  const whole = sealed(MAIN.slice(0, 4), MAIN_SEALING);
  for (let length = 0; length <= whole.length; length += 1) {
    const offence = await streamOffence(pairs, whole.subarray(0, length), checksum);
    expect(offence, `cut at ${length}`).toBeNull();
  }
});

/** Finds every checksum right: it looks up what the sender claims. */
const GULLIBLE: Checksum = {
  of: () => 0n,
  ofPair: (header) =>
    new DataView(header.buffer, header.byteOffset + header.length).getBigUint64(0, true),
};

test(`a main channel that does not check checksums is caught (SEED=${seed})`, async () => {
  const offence = await firstOffence(CANARY_RUNS, (random) =>
    streamOffence(pairs, spoiltMain(random), GULLIBLE),
  );
  expect(offence).not.toBeNull();
});

const PAGE = 4096;

/** Two blocks with content in them, as a destination has that was used before. */
function makeBlocks(random: Prng, isPristine: boolean): FuzzBlock[] {
  return [
    { name: "ram", pageBytes: PAGE, pages: 9 },
    { name: "rom", pageBytes: 4 * PAGE, pages: 2 },
  ].map(({ name, pageBytes, pages }) => {
    const memory = sharedMemory(pages * pageBytes);
    if (!isPristine) {
      const content = new Uint8Array(memory.sizeBytes);
      random.bytes(content);
      memory.write(content.fill(0, pageBytes, 2 * pageBytes));
    }
    const announced = { name, sizeBytes: memory.sizeBytes, pageBytes };
    return { memory, block: receiveBlockOf({ ...announced, target: memory, isPristine }) };
  });
}

function zeros(first: number, pages: number): WireRun {
  return { first, pages, encoding: ENCODING.zero, payload: new Uint8Array(0) };
}

function raw(random: Prng, first: number, bytes: number, pageBytes = PAGE): WireRun {
  const payload = new Uint8Array(bytes);
  random.bytes(payload);
  return { first, pages: bytes / pageBytes, encoding: ENCODING.raw, payload };
}

/** What a source sends on a bulk channel: small and large runs, pages twice, fences. */
function bulkPieces(random: Prng): Piece[] {
  const pages = (block: number, runs: readonly WireRun[]): Piece => {
    return { kind: KIND.pages, body: pagesBody(block, runs) };
  };
  return [
    pages(0, [zeros(0, 3), raw(random, 3, PAGE), zeros(4, 5)]),
    pages(0, [raw(random, 0, 2 * PAGE)]),
    { kind: KIND.fence, body: u32(1) },
    pages(1, [zeros(0, 1), raw(random, 1, 4 * PAGE, 4 * PAGE)]),
    pages(0, [raw(random, 0, 9 * PAGE)]),
    pages(0, [zeros(2, 1), raw(random, 5, PAGE), raw(random, 5, PAGE)]),
    { kind: KIND.fence, body: u32(0xffff_ffff) },
    { kind: KIND.end, body: Buffer.alloc(0) },
  ];
}

/** `FUZZ_RUNS=10000` for a long search. */
const RECEIVER_RUNS = Number(process.env["FUZZ_RUNS"] ?? 300);

for (const hasChecksum of [true, false]) {
  const how = hasChecksum ? "with checksums" : "without checksums";

  test(`any bytes on a bulk channel ${how} change what they may and end typed (SEED=${seed})`, async () => {
    const offence = await firstOffence(RECEIVER_RUNS, async (random) => {
      const blocks = makeBlocks(random, random.below(2) === 0);
      const sealing = { firstSequence: 1, hasChecksum: hasChecksum !== (random.below(10) === 0) };
      const bytes = mutated(random, bulkPieces(random), sealing);
      return await receiverOffence(pairs, bytes, { blocks, checksum, hasChecksum });
    });
    expect(offence).toBeNull();
  });

  test(`a bulk channel ${how} that is cut off anywhere ends typed, its frames before applied`, async () => {
    const random = new Prng(1);
    const pieces = [
      { kind: KIND.pages, body: pagesBody(0, [zeros(0, 2), zeros(5, 1)]) },
      { kind: KIND.fence, body: u32(7) },
      { kind: KIND.pages, body: pagesBody(1, [zeros(1, 1), zeros(0, 1)]) },
      { kind: KIND.pages, body: pagesBody(0, [raw(random, 1, PAGE)]) },
      { kind: KIND.end, body: Buffer.alloc(0) },
    ];
    const whole = sealed(pieces, { firstSequence: 1, hasChecksum });
    const rawAt = whole.length - PAGE - HEADER_BYTES;
    for (let length = 0; length <= whole.length; length += 1) {
      // In the payload one offset is like another: some of them will do.
      const isPayload = length > rawAt && length < whole.length - HEADER_BYTES;
      if (isPayload && length % 61 !== 0) continue;
      const blocks = makeBlocks(random, false);
      const bytes = whole.subarray(0, length);
      const offence = await receiverOffence(pairs, bytes, { blocks, checksum, hasChecksum });
      expect(offence, `cut at ${length}`).toBeNull();
    }
  });
}

const ANSWERS: readonly Piece[] = [{ kind: KIND.fenced, body: u32(7) }, FAILURE];

function spoiltAnswer(random: Prng): Buffer {
  const answer = ANSWERS[random.below(ANSWERS.length)] ?? FAILURE;
  return mutated(random, [answer], { firstSequence: 1, hasChecksum: random.below(8) > 0 });
}

test(`any bytes are the answer to a fence, or a typed failure (SEED=${seed})`, async () => {
  const offence = await firstOffence(600, (random) =>
    fenceOffence(pairs, spoiltAnswer(random), checksum),
  );
  expect(offence).toBeNull();
});

test(`a sender that does not check the answer to a fence is caught (SEED=${seed})`, async () => {
  const offence = await firstOffence(CANARY_RUNS, (random) =>
    fenceOffence(pairs, spoiltAnswer(random), GULLIBLE),
  );
  expect(offence).not.toBeNull();
});

/** Receivers that are nearly right, and what finds them out. */
const BROKEN = [
  {
    what: "that does not check checksums",
    seenBy: /leaves page|takes a stream|answers/,
    judge: (blocks: FuzzBlock[], bytes: Buffer) =>
      receiverOffence(pairs, bytes, { blocks, checksum: GULLIBLE, hasChecksum: true }),
  },
  {
    what: "that does not insist on checksums",
    seenBy: /leaves page|takes a stream|answers/,
    judge: (blocks: FuzzBlock[], bytes: Buffer) =>
      receiverOffence(pairs, bytes, { blocks, checksum, hasChecksum: false, mustCheck: true }),
  },
  {
    what: "that takes a block for larger than it is",
    seenBy: /outside the block|leaves page|takes a stream|throws|answers/,
    judge: (blocks: FuzzBlock[], bytes: Buffer) => {
      const larger = blocks.map(({ block, memory }) => {
        const { pageBytes, pageCount, sizeBytes } = block;
        const size = { pageCount: pageCount + 1, sizeBytes: sizeBytes + pageBytes };
        return { block: { ...block, ...size }, memory };
      });
      return receiverOffence(pairs, bytes, { blocks: larger, checksum, hasChecksum: true });
    },
  },
] as const;

for (const { what, seenBy, judge } of BROKEN) {
  test(`a receiver ${what} is caught (SEED=${seed})`, async () => {
    const offence = await firstOffence(CANARY_RUNS, async (random) => {
      const blocks = makeBlocks(random, false);
      const sealing = { firstSequence: 1, hasChecksum: random.below(4) > 0 };
      return await judge(blocks, mutated(random, bulkPieces(random), sealing));
    });
    expect(offence ?? "nothing").toMatch(seenBy);
  });
}

test("a write beyond a block is seen by the bytes that guard it", async () => {
  const random = new Prng(1);
  const [first, second] = makeBlocks(random, false);
  if (first === undefined || second === undefined) throw new RangeError("there are two blocks");
  const { block, memory } = first;
  const larger = { ...block, pageCount: block.pageCount + 1, sizeBytes: block.sizeBytes + PAGE };
  const pieces = [{ kind: KIND.pages, body: pagesBody(0, [zeros(block.pageCount, 1)]) }];
  const offence = await receiverOffence(
    pairs,
    sealed(pieces, { firstSequence: 1, hasChecksum: true }),
    { blocks: [{ block: larger, memory }, second], checksum, hasChecksum: true },
  );
  expect(offence).toBe("writes outside the block");
});
