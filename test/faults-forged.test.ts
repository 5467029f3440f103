import { beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { FrameName } from "../channels/frame.ts";
import { CODEC, compressedPayload, deltaPayload, generationOf } from "./fixtures/wire-shrunk.ts";
import { pagesBody } from "./fixtures/wire-source.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";
import { ENCODING, frameBytes, HEADER_BYTES, KIND } from "./wire-peer.ts";

/** Frames of a real migration that somebody on the way sends otherwise than they were sent. */
const seed = seedFromEnvironment();

beforeAll(warmUp);

/** Where a header says how long the body is. */
const LENGTH_AT = 12;
const SEQUENCE_AT = 8;

/** What becomes of the first such frame, and of those behind it. */
type Forgery = (relay: Relay, channel: number, frame: FrameName) => void;

const FORGERIES: Readonly<Record<string, Forgery>> = {
  duplicated: (relay, channel, frame) => {
    relay.forge(channel, frame, (bytes) => Buffer.concat([bytes, bytes]));
  },
  "behind the next one": (relay, channel, frame) => {
    let first = Buffer.alloc(0);
    relay.forge(channel, frame, (bytes) => {
      first = Buffer.from(bytes);
      return Buffer.alloc(0);
    });
    relay.forge(channel, frame, (bytes) => Buffer.concat([bytes, first]));
  },
  "longer than any frame": (relay, channel, frame) => {
    relay.forge(channel, frame, (bytes) => {
      const forged = Buffer.from(bytes);
      forged.writeUInt32LE(2 ** 32 - 1, LENGTH_AT);
      return forged;
    });
  },
  "cut short, with the next one behind it": (relay, channel, frame) => {
    relay.forge(channel, frame, (bytes) => bytes.subarray(0, bytes.length - 5));
  },
  garbage: (relay, channel, frame) => {
    relay.forge(channel, frame, (bytes) => {
      const forged = Buffer.alloc(bytes.length);
      new Prng(seed).bytes(forged);
      return forged;
    });
  },
};

/** Answers come one at a time: the next one is not sent before this one has come whole. */
const ANSWERABLE = ["duplicated", "longer than any frame", "garbage"];

for (const { channel, frame, reader, forgeries } of [
  { channel: 1, frame: "pages", reader: "destination", forgeries: Object.keys(FORGERIES) },
  { channel: 0, frame: "round", reader: "destination", forgeries: Object.keys(FORGERIES) },
  { channel: 1, frame: "fenced", reader: "source", forgeries: ANSWERABLE },
] as const) {
  for (const forgery of forgeries) {
    test(`${frame} on channel ${channel} that is ${forgery} is refused, and a retry succeeds (SEED=${seed})`, async () => {
      const rig = new FaultRig(seed);
      {
        await using relay = await Relay.start();
        must(FORGERIES[forgery], "it is one of them")(relay, channel, frame);
        const outcome = await rig.fails({ relay });
        // The main channel has sums, and bytes of the next frame are not those that were summed.
        const isSummed = channel === 0 && forgery.startsWith("cut short");
        const code = isSummed ? "CHECKSUM_MISMATCH" : "FRAME_CORRUPT";
        expect(verdictsOf(outcome)[reader]).toBe(`${code} at ${reader}`);
      }
      await rig.succeeds();
    });
  }
}

const PAGE = 4 * KIB;

/** A page that a frame brought raw, the first one of a run, and the generation that it has then. */
interface Sent {
  readonly block: number;
  readonly page: number;
  readonly generation: number;
}

function firstRaw(frame: Buffer): Sent {
  const body = frame.subarray(HEADER_BYTES);
  for (let at = 8; at < 8 + 12 * body.readUInt16LE(4); at += 12) {
    if (body.readUInt8(at + 6) !== ENCODING.raw) continue;
    const generation = generationOf(1, frame.readUInt32LE(SEQUENCE_AT));
    return { block: body.readUInt32LE(0), page: body.readUInt32LE(at), generation };
  }
  throw new RangeError("a frame of a guest that is not all zero has raw pages");
}

function deltaBody({ block, page, generation }: Sent, after: Uint8Array): Buffer {
  const payload = deltaPayload(new Uint8Array(PAGE), after, [generation]);
  return pagesBody(block, [{ first: page, pages: 1, encoding: ENCODING.delta, payload }]);
}

/** Bodies in the place of the second PAGES frame, and which field they are refused for. */
const SHRUNK: Readonly<Record<string, { field: string; body: (sent: Sent) => Buffer }>> = {
  "a delta that goes beyond its page": {
    field: "delta",
    body: (sent) => {
      const body = deltaBody(sent, new Uint8Array(PAGE).fill(9, PAGE - 1));
      // The high byte of the skip before the only change.
      body.writeUInt8(0x20, body.length - 3);
      return body;
    },
  },
  "a delta on another generation": {
    field: "generation of a delta",
    body: (sent) => {
      const other = { ...sent, generation: sent.generation + 1 };
      return deltaBody(other, new Uint8Array(PAGE).fill(9, 0, 3));
    },
  },
  "a small frame that expands to a megabyte": {
    field: 'payload of codec "zstd"',
    body: ({ block, page }) => {
      const raw = new Uint8Array(PAGE);
      const run = { first: page, pages: 1, encoding: ENCODING.raw, payload: raw };
      const head = pagesBody(block, [run]).subarray(0, 8 + 12);
      head.writeUInt8(CODEC.zstd, 6);
      return Buffer.concat([head, compressedPayload(CODEC.zstd, new Uint8Array(1 * MIB))]);
    },
  },
};

for (const [what, { field, body }] of Object.entries(SHRUNK)) {
  test(`${what} is refused, and a retry succeeds (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    {
      await using relay = await Relay.start();
      let sent: Sent | null = null;
      relay.forge(1, "pages", (bytes) => {
        sent = firstRaw(bytes);
        return bytes;
      });
      relay.forge(1, "pages", (bytes) => {
        const sequence = bytes.readUInt32LE(SEQUENCE_AT);
        const forged = body(must(sent, "a frame came before"));
        return frameBytes({ kind: KIND.pages, body: forged, sequence, hasChecksum: false });
      });
      const outcome = await rig.fails({ relay });
      const verdict = "FRAME_CORRUPT at destination";
      expect(verdictsOf(outcome)).toEqual({ source: verdict, destination: verdict });
      expect(outcome.destination.failure?.facts).toMatchObject({ channel: 1, field });
    }
    await rig.succeeds();
  });
}
