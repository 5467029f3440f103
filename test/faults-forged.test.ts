import { beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import type { FrameName } from "../channels/frame.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { Relay } from "./harness/relay.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/** Frames of a real migration that somebody on the way sends otherwise than they were sent. */
const seed = seedFromEnvironment();

beforeAll(warmUp);

/** Where a header says how long the body is. */
const LENGTH_AT = 12;

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
