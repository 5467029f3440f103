import { afterAll, beforeAll, expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { PageReceiver } from "../workers/page-receiver.ts";
import { type FuzzBlock, type Offence, receiverOffence } from "./fixtures/wire-fuzz.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { mutated, type Piece, sealed } from "./fixtures/wire-mutations.ts";
import { SocketPairs, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import { placeOf, receiveBlockOf, receiveSetupOf } from "./fixtures/wire-pipeline.ts";
import { CODEC, compressedPayload, deltaPayload, generationOf } from "./fixtures/wire-shrunk.ts";
import { pagesBody, type WireRun } from "./fixtures/wire-source.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { ENCODING, KIND, u32 } from "./wire-peer.ts";

const seed = seedFromEnvironment();
const PAGE = 4 * KIB;
const LARGE = 64 * KIB;

let pairs: SocketPairs;
let checksum: Checksum;
beforeAll(async () => {
  pairs = await SocketPairs.open();
  checksum = await loadChecksum();
});
afterAll(() => pairs.close());

/** A block of a destination that was used before. */
function makeBlock(random: Prng, pageBytes: number, pages: number): FuzzBlock {
  const memory = sharedMemory(pages * pageBytes);
  const content = new Uint8Array(memory.sizeBytes);
  random.bytes(content);
  memory.write(content);
  const announced = { name: `${pageBytes}`, sizeBytes: memory.sizeBytes, pageBytes };
  return { memory, block: receiveBlockOf({ ...announced, target: memory, isPristine: false }) };
}

function makeBlocks(random: Prng): FuzzBlock[] {
  return [makeBlock(random, PAGE, 9), makeBlock(random, 4 * PAGE, 3), makeBlock(random, LARGE, 2)];
}

/** Frames of a bulk channel, each told its sequence number: the first has 1. */
type Script = (sequence: number) => Piece;

function written(frames: readonly Script[]): Piece[] {
  return frames.map((frame, index) => frame(index + 1));
}

const END: Piece = { kind: KIND.end, body: Buffer.alloc(0) };

function pages(block: number, runs: readonly WireRun[], codec: number = CODEC.none): Piece {
  return { kind: KIND.pages, body: pagesBody(block, runs, codec) };
}

function run(first: number, count: number, encoding: number, payload: Uint8Array): WireRun {
  return { first, pages: count, encoding, payload };
}

function text(bytes: number, from = 0): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, at) => 97 + (((at + from) * 7) % 13));
}

/** The text with some of its bytes changed: few, many, or all of a stretch. */
function changed(random: Prng, before: Uint8Array): Uint8Array {
  const after = before.slice();
  for (let count = 1 + random.below(30); count > 0; count -= 1) {
    const at = random.below(after.length);
    random.bytes(after.subarray(at, at + 1 + random.below(5)));
  }
  if (random.below(3) === 0) random.bytes(after.subarray(100, 100 + random.below(2000)));
  return after;
}

/** A valid stream with deltas and compressed runs; some runs are spoilt by `spoil` on the way. */
function shrunkPieces(
  random: Prng,
  spoil: (payload: Buffer, run: { pages: number; units: number }) => Uint8Array = (same) => same,
): Piece[] {
  const delta = (
    place: { block: number; first: number; count: number; pageBytes: number },
    version: { before: Uint8Array; after: Uint8Array; generation: number },
    codec: number,
  ): Piece => {
    const { block, first, count, pageBytes } = place;
    const { before, after, generation } = version;
    const right = deltaPayload(before, after, Array(count).fill(generation));
    const payload = spoil(right, { pages: count, units: (count * pageBytes) / PAGE });
    const hasShrunk = compressedSize(codec, payload) < payload.length;
    const runs = [run(first, count, ENCODING.delta, payload)];
    return pages(block, runs, hasShrunk ? codec : CODEC.none);
  };
  const [first, second] = [text(4 * PAGE), text(2 * 4 * PAGE, 5)];
  const [firstChanged, secondChanged] = [changed(random, first), changed(random, second)];
  const largeChanged = changed(random, LARGE_TEXT);
  const [one, two] = [{ block: 0, first: 2, count: 4, pageBytes: PAGE }, BLOCK_TWO];
  return written([
    () => pages(0, [run(0, 2, ENCODING.zero, NOTHING), run(2, 4, ENCODING.raw, first)]),
    () => pages(1, [run(1, 2, ENCODING.raw, second)], CODEC.zstd),
    () => pages(2, [run(0, 1, ENCODING.raw, LARGE_TEXT)], CODEC.zstd),
    () => delta(one, { before: first, after: firstChanged, generation: 1 }, CODEC.none),
    () =>
      delta(BLOCK_THREE, { before: LARGE_TEXT, after: largeChanged, generation: 3 }, CODEC.none),
    () => ({ kind: KIND.fence, body: u32(5) }),
    () => delta(two, { before: second, after: secondChanged, generation: 2 }, CODEC.deflate),
    () => delta(one, { before: firstChanged, after: first, generation: 4 }, CODEC.zstd),
    (sequence) => {
      const payload = deltaPayload(new Uint8Array(PAGE), text(PAGE).fill(0, 9), [sequence]);
      const grown = run(0, 1, ENCODING.delta, spoil(payload, { pages: 1, units: 1 }));
      return pages(0, [run(0, 2, ENCODING.zero, NOTHING), grown]);
    },
    () => ({ kind: KIND.fence, body: u32(6) }),
    () => END,
  ]);
}

const NOTHING = new Uint8Array(0);
const BLOCK_TWO = { block: 1, first: 1, count: 2, pageBytes: 4 * PAGE };
const BLOCK_THREE = { block: 2, first: 0, count: 1, pageBytes: LARGE };
const LARGE_TEXT = text(LARGE, 3);

function compressedSize(codec: number, payload: Uint8Array): number {
  return codec === CODEC.none ? payload.length : compressedPayload(codec, payload).length;
}

/** A delta payload that says something else, or nothing that can be understood. */
function spoiltDelta(random: Prng, payload: Buffer, { pages: count, units }: Units): Uint8Array {
  if (random.below(3) === 0) return payload;
  const bytes = Buffer.from(payload);
  const lengthsAt = count * 4;
  const changesAt = lengthsAt + units * 2;
  const unit = lengthsAt + 2 * random.below(units);
  const length = bytes.readUInt16LE(unit);
  switch (random.below(9)) {
    case 0:
      bytes.writeUInt32LE(random.below(8), 4 * random.below(count));
      return bytes;
    case 1:
      bytes.writeUInt32LE(random.below(2 ** 32), 4 * random.below(count));
      return bytes;
    case 2:
      bytes.writeUInt16LE(Math.max(0, Math.min(0xffff, length + random.below(5) - 2)), unit);
      return bytes;
    case 3:
      bytes.writeUInt16LE(random.below(0x1_0000), unit);
      return bytes;
    case 4:
      random.bytes(bytes.subarray(changesAt));
      return bytes;
    case 5:
      return bytes.subarray(0, random.below(bytes.length + 1));
    case 6:
      return Buffer.concat([bytes, Buffer.alloc(1 + random.below(9), random.below(256))]);
    case 7: {
      // A skip and a count that go on too long, or beyond the end of the unit.
      const at = changesAt + random.below(Math.max(1, bytes.length - changesAt - 4));
      bytes.fill([0x80, 0xff, 0x7f, 0x00][random.below(4)] ?? 0, at, at + 1 + random.below(3));
      return bytes;
    }
    default: {
      const at = random.below(bytes.length);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.below(8));
      return bytes;
    }
  }
}

interface Units {
  readonly pages: number;
  readonly units: number;
}

/** A frame's compressed payload, or its codec, spoilt. */
function withCodec(random: Prng, pieces: readonly Piece[]): Piece[] {
  return pieces.map(({ kind, body }) => {
    if (kind !== KIND.pages || random.below(3) > 0) return { kind, body };
    const spoilt = Buffer.from(body);
    const payloadAt = 8 + 12 * spoilt.readUInt16LE(4);
    const how = random.below(6);
    if (how === 0) spoilt.writeUInt8(random.below(4), 6);
    if (how === 1) random.bytes(spoilt.subarray(payloadAt));
    if (how === 2) return { kind, body: spoilt.subarray(0, random.below(spoilt.length + 1)) };
    if (how === 3) return { kind, body: Buffer.concat([spoilt, Buffer.alloc(random.below(20))]) };
    if (how === 4 && spoilt.length > payloadAt) {
      const at = payloadAt + random.below(spoilt.length - payloadAt);
      spoilt[at] = (spoilt[at] ?? 0) ^ (1 << random.below(8));
    }
    if (how === 5) spoilt.writeUInt32LE(random.below(2 * PAGE), 16);
    return { kind, body: spoilt };
  });
}

function spoiltStream(random: Prng, hasChecksum: boolean): Buffer {
  const sealing = { firstSequence: 1, hasChecksum };
  const how = random.below(4);
  if (how === 0) return mutated(random, shrunkPieces(random), sealing);
  if (how === 1) return sealed(withCodec(random, shrunkPieces(random)), sealing);
  return sealed(
    shrunkPieces(random, (payload, units) => spoiltDelta(random, payload, units)),
    sealing,
  );
}

/** `FUZZ_RUNS=10000` for a long search. */
const RECEIVER_RUNS = Number(process.env["FUZZ_RUNS"] ?? 300);

/** The first offence of many, with what replays it, or null. */
async function firstOffence(runs: number, judge: (random: Prng) => Promise<Offence>) {
  const random = new Prng(seed);
  for (let index = 0; index < runs; index += 1) {
    const offence = await judge(random);
    if (offence !== null) return `run ${index}: ${offence}`;
  }
  return null;
}

for (const hasChecksum of [false, true]) {
  const how = hasChecksum ? "with checksums" : "without checksums";

  test(`deltas and compressed runs ${how}, spoilt anyhow, change what they may and end typed (SEED=${seed})`, async () => {
    const offence = await firstOffence(RECEIVER_RUNS, async (random) => {
      const blocks = makeBlocks(random);
      const bytes = spoiltStream(random, hasChecksum);
      return await receiverOffence(pairs, bytes, { blocks, checksum, hasChecksum });
    });
    expect(offence).toBeNull();
  });
}

test(`the streams that are spoilt are right before that (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (let count = 0; count < 20; count += 1) {
    const blocks = makeBlocks(random);
    const bytes = sealed(shrunkPieces(random), { firstSequence: 1, hasChecksum: true });
    const given = { blocks, checksum, hasChecksum: true };
    expect(await receiverOffence(pairs, bytes, given)).toBeNull();
    expect(await received(shrunkPieces(random), makeBlocks(random))).toBeNull();
  }
});

test(`a receiver that is wrong about the generation of a page is caught (SEED=${seed})`, async () => {
  const offence = await firstOffence(5000, async (random) => {
    const blocks = makeBlocks(random);
    for (const { block } of blocks) block.generations.fill(1);
    const pieces = shrunkPieces(random).slice(3);
    const first = sealed(pieces, { firstSequence: 1, hasChecksum: true });
    return await receiverOffence(pairs, first, { blocks, checksum, hasChecksum: true });
  });
  expect(offence ?? "nothing").toMatch(/leaves page|answers|takes a stream/);
});

/** What a receiver says of some frames: null when they are right. */
async function received(
  pieces: readonly Piece[],
  blocks: readonly FuzzBlock[],
): Promise<MigrationError | null> {
  const { near, far } = await pairs.make();
  const bytes = sealed(pieces, { firstSequence: 1, hasChecksum: false });
  await new Promise<void>((resolve) => far.end(bytes, resolve));
  const setup = receiveSetupOf(
    blocks.map(({ block }) => block),
    false,
  );
  const receiver = new PageReceiver(setup, placeOf(threadDescriptorOf(near)), checksum);
  try {
    receiver.receive();
    return null;
  } catch (error) {
    if (!(error instanceof MigrationError)) throw error;
    return error;
  } finally {
    receiver.close();
    near.destroy();
    far.destroy();
  }
}

/** Refused as corrupt, and nothing in memory is other than `wanted`. */
async function expectRefusal(
  pieces: readonly Piece[],
  block: FuzzBlock,
  refusal: { field: string; wanted: Uint8Array },
): Promise<void> {
  const failure = await received([...pieces, END], [block]);
  expect(failure).toMatchObject({ code: "FRAME_CORRUPT", facts: { field: refusal.field } });
  expect(Buffer.compare(block.memory.read(), refusal.wanted)).toBe(0);
  expect(block.memory.isGuarded).toBe(true);
}

for (const pageBytes of [4 * KIB, 16 * KIB, 64 * KIB]) {
  const name = `pages of ${pageBytes / KIB} KiB`;

  test(`a delta on another generation than the page's is refused, whichever page it is: ${name}`, async () => {
    const before = text(3 * pageBytes);
    const after = changed(new Prng(7), before);
    const sent = pages(0, [run(1, 3, ENCODING.raw, before)]);
    const wrong = [0, 2, 3, 2 ** 26 + 1, 2 ** 32 - 1, generationOf(64, 1)];
    for (const generation of wrong) {
      for (const place of [0, 1, 2]) {
        const block = makeBlock(new Prng(seed), pageBytes, 5);
        const wanted = block.memory.read();
        wanted.set(before, pageBytes);
        const generations = [1, 1, 1].with(place, generation);
        const payload = deltaPayload(before, after, generations);
        const delta = pages(0, [run(1, 3, ENCODING.delta, payload)]);
        const refusal = { field: "generation of a delta", wanted };
        await expectRefusal([sent, delta], block, refusal);
      }
    }
  });

  test(`a delta on a page that nobody sent is refused, also where it names no generation: ${name}`, async () => {
    for (const generation of [0, 1, 2]) {
      const block = makeBlock(new Prng(seed), pageBytes, 5);
      const wanted = block.memory.read();
      const before = wanted.subarray(0, pageBytes);
      const payload = deltaPayload(before, changed(new Prng(7), before), [generation]);
      const delta = pages(0, [run(0, 1, ENCODING.delta, payload)]);
      await expectRefusal([delta], block, { field: "generation of a delta", wanted });
    }
  });

  test(`a run with one delta that is none leaves all its pages alone: ${name}`, async () => {
    const before = text(2 * pageBytes);
    const after = changed(new Prng(7), before);
    // One byte more for the last unit: a number that nothing follows.
    const spoilt = Buffer.concat([deltaPayload(before, after, [1, 1]), Buffer.from([5])]);
    const lastLengthAt = 2 * 4 + 2 * ((2 * pageBytes) / PAGE - 1);
    spoilt.writeUInt16LE(spoilt.readUInt16LE(lastLengthAt) + 1, lastLengthAt);
    const sent = pages(0, [run(1, 2, ENCODING.raw, before)]);
    const delta = pages(0, [run(1, 2, ENCODING.delta, spoilt)]);
    const block = makeBlock(new Prng(seed), pageBytes, 4);
    const wanted = block.memory.read();
    wanted.set(before, pageBytes);
    await expectRefusal([sent, delta], block, { field: "delta", wanted });
  });
}

/** Changes of a unit that a receiver must refuse, by what is wrong with them. */
const NO_CHANGES: Readonly<Record<string, readonly number[]>> = {
  "a number that goes on for three bytes": [0x80, 0x80, 0x01, 0x01, 0x00],
  "a number that ends with the changes": [0x85],
  "a skip without a count": [0x05],
  "a skip and a count without bytes": [0x05, 0x02],
  "a count of nothing": [0x05, 0x00],
  "fewer bytes than counted": [0x05, 0x03, 0x01, 0x02],
  "no skip between two changes": [0x05, 0x01, 0x09, 0x00, 0x01, 0x09],
  "a skip beyond the unit": [0xff, 0x7f, 0x01, 0x09],
  "a change that begins at the end of the unit": [0x80, 0x20, 0x01, 0x09],
  "a change beyond the end of the unit": [0xff, 0x1f, 0x02, 0x09, 0x09],
};

for (const [what, changes] of Object.entries(NO_CHANGES)) {
  test(`changes are refused that have ${what}`, async () => {
    for (const unit of [0, 1, 3]) {
      const block = makeBlock(new Prng(seed), 4 * PAGE, 2);
      const wanted = block.memory.read();
      const before = text(4 * PAGE);
      wanted.set(before);
      const lengths = Buffer.alloc(4 * 2);
      lengths.writeUInt16LE(changes.length, unit * 2);
      const payload = Buffer.concat([u32(1), lengths, Buffer.from(changes)]);
      await expectRefusal(
        [
          pages(0, [run(0, 1, ENCODING.raw, before)]),
          pages(0, [run(0, 1, ENCODING.delta, payload)]),
        ],
        block,
        { field: "delta", wanted },
      );
    }
  });
}

test("lengths that do not add up are refused before anything is read by them", async () => {
  const block = makeBlock(new Prng(seed), PAGE, 2);
  const before = text(PAGE);
  const wanted = block.memory.read();
  wanted.set(before);
  const right = deltaPayload(before, changed(new Prng(7), before), [1]);
  for (const length of [0, 1, right.length - 7, right.length - 5, 4096, 0xffff]) {
    const payload = Buffer.from(right);
    payload.writeUInt16LE(length, 4);
    const raw = pages(0, [run(0, 1, ENCODING.raw, before)]);
    const delta = pages(0, [run(0, 1, ENCODING.delta, payload)]);
    const fresh = makeBlock(new Prng(seed), PAGE, 2);
    await expectRefusal([raw, delta], fresh, { field: "bytes of deltas", wanted });
  }
});

test("a run of deltas has no more pages than a receiver has room for, and no more bytes", async () => {
  const count = 129;
  const block = () => makeBlock(new Prng(seed), PAGE, count);
  const wanted = block().memory.read();
  for (const [pageCount, bytes] of [
    [count, count * 6],
    [1, 5],
    [1, PAGE + 5],
    [16, 16 * (PAGE + 4) + 1],
  ] as const) {
    const delta = pages(0, [run(0, pageCount, ENCODING.delta, new Uint8Array(bytes))]);
    await expectRefusal([delta], block(), { field: "bytes of a delta run", wanted });
  }
});

for (const [name, codec] of Object.entries(CODEC)) {
  if (codec === CODEC.none) continue;

  /** A frame whose table announces `bytes` of raw pages, with that payload behind it. */
  const frame = (bytes: number, payload: Uint8Array): Piece => {
    const body = pagesBody(0, [run(0, bytes / PAGE, ENCODING.raw, new Uint8Array(bytes))]);
    body.writeUInt8(codec, 6);
    return { kind: KIND.pages, body: Buffer.concat([body.subarray(0, 8 + 12), payload]) };
  };

  test(`a small ${name} frame that expands to more than it announces is refused`, async () => {
    for (const bytes of [PAGE + 1, 2 * PAGE, 1 * MIB, 64 * MIB]) {
      const bomb = compressedPayload(codec, new Uint8Array(bytes));
      const block = makeBlock(new Prng(seed), PAGE, 32);
      const wanted = block.memory.read();
      const announced = bomb.length < PAGE ? PAGE : 32 * PAGE;
      const field = bomb.length < 32 * PAGE ? `payload of codec "${name}"` : "payload bytes";
      await expectRefusal([frame(announced, bomb)], block, { field, wanted });
    }
  });

  test(`a ${name} frame that expands to less than it announces, or is cut off, is refused`, async () => {
    const block = makeBlock(new Prng(seed), PAGE, 8);
    const wanted = block.memory.read();
    const small = compressedPayload(codec, text(4 * PAGE));
    const field = `payload of codec "${name}"`;
    for (const [bytes, payload] of [
      [8 * PAGE, small],
      [4 * PAGE, small.subarray(0, small.length - 1)],
      [4 * PAGE, small.subarray(1)],
      [4 * PAGE, Buffer.concat([small, Buffer.from([0])])],
      [4 * PAGE, Buffer.alloc(0)],
      [4 * PAGE, Buffer.alloc(40, 0xee)],
    ] as const) {
      await expectRefusal([frame(bytes, payload)], block, { field, wanted });
    }
  });

  test(`a ${name} frame that announces more than a frame may carry is refused unread`, async () => {
    const block = makeBlock(new Prng(seed), PAGE, 300);
    const wanted = block.memory.read();
    const bomb = compressedPayload(codec, new Uint8Array(257 * PAGE));
    await expectRefusal([frame(257 * PAGE, bomb)], block, { field: "payload bytes", wanted });
  });

  test(`a ${name} frame that saves nothing is refused: such payloads go as they are`, async () => {
    const noise = new Uint8Array(2 * PAGE);
    new Prng(seed).bytes(noise);
    const payload = compressedPayload(codec, noise);
    expect(payload.length).toBeGreaterThan(noise.length);
    const block = makeBlock(new Prng(seed), PAGE, 8);
    const wanted = block.memory.read();
    const refusal = { field: "payload bytes", wanted };
    await expectRefusal([frame(2 * PAGE, payload)], block, refusal);
    await expectRefusal([frame(2 * PAGE, noise)], block, refusal);
  });
}

test("codecs that do not exist, and a reserved byte that is not zero, are refused", async () => {
  const block = makeBlock(new Prng(seed), PAGE, 8);
  const wanted = block.memory.read();
  const raw = [run(0, 4, ENCODING.raw, text(4 * PAGE))];
  for (const codec of [3, 4, 128, 255]) {
    const body = pagesBody(0, raw, CODEC.zstd);
    body.writeUInt8(codec, 6);
    await expectRefusal([{ kind: KIND.pages, body }], block, { field: "codec", wanted });
  }
  const body = pagesBody(0, raw);
  body.writeUInt8(1, 7);
  await expectRefusal([{ kind: KIND.pages, body }], block, { field: "reserved", wanted });
  const nothing = pagesBody(0, [run(0, 4, ENCODING.zero, NOTHING)]);
  nothing.writeUInt8(CODEC.zstd, 6);
  const refusal = { field: "payload bytes", wanted };
  await expectRefusal([{ kind: KIND.pages, body: nothing }], block, refusal);
});
