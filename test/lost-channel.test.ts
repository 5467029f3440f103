import { beforeAll, expect, test } from "vitest";
import { FaultRig, warmUp } from "./harness/fault-rig.ts";
import { type Point, Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

/** A bulk channel that is lost before COMMIT: the others send what it may not have brought over. */
const seed = seedFromEnvironment();
const CHANNELS = 4;

beforeAll(warmUp);

for (const point of [
  { channel: 2, frame: "pages", where: "before" },
  { channel: 2, frame: "pages", where: "middle" },
  { channel: 2, frame: "pages", nth: 2, where: "after" },
  { channel: 2, frame: "fence", nth: 2, where: "before" },
  { channel: 2, frame: "fence", nth: 2, where: "middle" },
  { channel: 2, frame: "fenced", nth: 2, where: "before" },
  { channel: 2, frame: "fenced", nth: 2, where: "after" },
  { channel: 2, frame: "fence", nth: 3, where: "before" },
  { channel: 2, frame: "fenced", nth: 3, where: "middle" },
  { channel: 2, frame: "end", where: "before" },
  { channel: 2, frame: "end", where: "middle" },
] as const satisfies readonly Point[]) {
  const nth = "nth" in point ? ` ${point.nth}` : "";

  test(`one of four is cut ${point.where} ${point.frame}${nth}: the guest arrives (SEED=${seed})`, async () => {
    await using relay = await Relay.start();
    relay.at(point, "cut");
    const rig = new FaultRig(seed);
    const { source } = await rig.succeeds({ relay, out: { channels: CHANNELS } });
    expect(source.report?.channels.map(({ losses }) => losses)[2]).toBe(1);
  });
}
