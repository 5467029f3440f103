import { zstdCompressSync } from "node:zlib";
import { afterAll, beforeAll, expect, test } from "vitest";
import { KIB } from "../base/units.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { type FuzzBlock, receiverOffence } from "./fixtures/wire-fuzz.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { type Piece, sealed } from "./fixtures/wire-mutations.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import { receiveBlockOf } from "./fixtures/wire-pipeline.ts";
import {
  CODEC,
  CODEC_FORMS,
  compressedPayload,
  DELTA_FORMS,
  deltaPayload,
} from "./fixtures/wire-shrunk.ts";
import { pagesBody } from "./fixtures/wire-source.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { bodyOf, ENCODING, KIND } from "./wire-peer.ts";

/**
 * docs/wire.md leaves a sender a choice in how it writes a compressed payload or a delta. The
 * engine makes one of these choices, other implementations make others: all must arrive.
 */
const seed = seedFromEnvironment();

let pairs: SocketPairs;
let checksum: Checksum;
beforeAll(async () => {
  pairs = await SocketPairs.open();
  checksum = await loadChecksum();
});
afterAll(() => pairs.close());

/** All that a test sends must fit a socket's buffer, since it is read only after that. */
const BLOCK_BYTES = 64 * KIB;

function makeBlock(random: Prng, pageBytes: number): FuzzBlock {
  const memory = sharedMemory(BLOCK_BYTES);
  const content = new Uint8Array(memory.sizeBytes);
  random.bytes(content);
  memory.write(content);
  const announced = { name: "ram", sizeBytes: memory.sizeBytes, pageBytes };
  return { memory, block: receiveBlockOf({ ...announced, target: memory, isPristine: false }) };
}

/** Every codec with every form that it has. */
const FORMS = Object.values(CODEC).flatMap((codec) =>
  (CODEC_FORMS[codec] ?? []).map((_, form) => ({ codec, form })),
);

/** What a stream of raw pages and then deltas on them leaves in memory, if it is taken. */
async function receivedDeltas(
  versions: { before: Uint8Array; after: Uint8Array },
  given: {
    pageBytes: number;
    codec: number;
    form: number;
    deltas: Uint8Array;
    inOneFrame: boolean;
  },
): Promise<Uint8Array> {
  const { pageBytes, codec, form, deltas, inOneFrame } = given;
  const all = { first: 0, pages: BLOCK_BYTES / pageBytes };
  const raw = { ...all, encoding: ENCODING.raw, payload: versions.before };
  const delta = { ...all, encoding: ENCODING.delta, payload: deltas };
  const end: Piece = { kind: KIND.end, body: Buffer.alloc(0) };
  const frames = inOneFrame ? [[raw, delta]] : [[raw], [delta]];
  const bodies = frames.map((runs) => {
    // What does not shrink must go as it is, whatever the form.
    const payload = bodyOf(...runs.map((run) => run.payload));
    const hasShrunk = compressedPayload(codec, payload, form).length < payload.length;
    return pagesBody(0, runs, hasShrunk ? codec : CODEC.none, form * Number(hasShrunk));
  });
  const pieces = bodies.map((body) => ({ kind: KIND.pages, body }));
  const bytes = sealed([...pieces, end], { firstSequence: 1, hasChecksum: false });
  const block = makeBlock(new Prng(seed), pageBytes);
  const options = { blocks: [block], checksum, hasChecksum: false };
  expect(await receiverOffence(pairs, bytes, options)).toBeNull();
  return block.memory.read();
}

/** Text, and the same with stretches changed: short ones, long ones, neighbours, and whole units. */
function versionsOf(random: Prng, bytes: number): { before: Uint8Array; after: Uint8Array } {
  const before = Uint8Array.from({ length: bytes }, (_, at) => 97 + ((at * 7 + (at >> 5)) % 13));
  const after = before.slice();
  for (let count = 3 + random.below(60); count > 0; count -= 1) {
    const at = random.below(bytes);
    after.fill(random.below(97), at, at + 1 + random.below(random.below(4) === 0 ? 700 : 5));
  }
  after.fill(1, 0, 1);
  after.fill(2, bytes - 1);
  return { before, after };
}

for (const pageBytes of [4 * KIB, 16 * KIB, 64 * KIB]) {
  const name = `pages of ${pageBytes / KIB} KiB`;

  test(`deltas arrive in every form, by every codec in every form: ${name} (SEED=${seed})`, async () => {
    const random = new Prng(seed);
    for (const { codec, form } of FORMS) {
      for (const [index, shape] of DELTA_FORMS.entries()) {
        const pages = BLOCK_BYTES / pageBytes;
        const versions = versionsOf(random, BLOCK_BYTES);
        const { before, after } = versions;
        for (const inOneFrame of [false, true]) {
          const deltas = deltaPayload(before, after, Array(pages).fill(1), shape);
          expect(deltas.length).toBeLessThanOrEqual(pages * (pageBytes + 4));
          const given = { pageBytes, codec, form, deltas, inOneFrame };
          const arrived = await receivedDeltas(versions, given);
          const what = `codec ${codec} form ${form}, deltas ${index}`;
          expect(Buffer.compare(arrived, after), what).toBe(0);
        }
      }
    }
  });
}

test("what zstd has beyond one frame with bytes in it is refused, as the document says", async () => {
  const random = new Prng(seed);
  const { before } = versionsOf(random, BLOCK_BYTES);
  const half = before.length / 2;
  const whole = zstdCompressSync(before);
  const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 1]);
  // The number of a dictionary stands between the descriptor and the size of the content.
  const head = Buffer.from([...whole.subarray(0, 4), whole.readUInt8(4) | 1]);
  const withDictionary = Buffer.concat([head, Buffer.from([7]), whole.subarray(5)]);
  for (const payload of [
    Buffer.concat([
      zstdCompressSync(before.subarray(0, half)),
      zstdCompressSync(before.subarray(half)),
    ]),
    Buffer.concat([whole, zstdCompressSync(new Uint8Array(0))]),
    Buffer.concat([skippable, whole]),
    Buffer.concat([whole, skippable]),
    withDictionary,
  ]) {
    const block = makeBlock(random, 4 * KIB);
    const wanted = block.memory.read();
    const pageCount = BLOCK_BYTES / (4 * KIB);
    const raw = { first: 0, pages: pageCount, encoding: ENCODING.raw, payload: before };
    const table = pagesBody(0, [raw]).subarray(0, 8 + 12);
    table.writeUInt8(CODEC.zstd, 6);
    const pages = { kind: KIND.pages, body: Buffer.concat([table, payload]) };
    const end = { kind: KIND.end, body: Buffer.alloc(0) };
    const bytes = sealed([pages, end], { firstSequence: 1, hasChecksum: true });
    const options = { blocks: [block], checksum, hasChecksum: true };
    expect(await receiverOffence(pairs, bytes, options)).toBeNull();
    expect(Buffer.compare(block.memory.read(), wanted)).toBe(0);
  }
});
