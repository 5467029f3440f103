import { beforeAll, expect, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import { migrateOut } from "../engine/source.ts";
import { DeafListener } from "./harness/deaf-listener.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { outcomeOf } from "./harness/pair.ts";
import { pristine, RecordingDestination } from "./harness/recording-destination.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

beforeAll(warmUp);

for (const kind of ["tcp", "unix"] as const) {
  test(`no listener is CONNECT_FAILED, and the guest does not notice: ${kind}`, async () => {
    const rig = new FaultRig(seed);
    // A port that was free a moment ago, and a folder that has no sockets.
    const relay = await Relay.start();
    const address = kind === "tcp" ? relay.before("") : "unix:/proc/self/no-socket";
    await relay[Symbol.asyncDispose]();

    const { failure } = await outcomeOf(migrateOut(rig.source, address));
    expect(failure).toMatchObject({ code: "CONNECT_FAILED", at: "source", facts: { address } });
    expect(rig.source.calls).toEqual([]);
    rig.expectUnharmed();
    await rig.succeeds({ kind });
  });
}

test("a listener that accepts nobody is CONNECT_FAILED in time", async () => {
  await using deaf = await DeafListener.start();
  const rig = new FaultRig(seed);
  const out = { connectTimeoutMs: 300 };
  const { failure } = await outcomeOf(migrateOut(rig.source, deaf.address, out));
  expect(failure).toMatchObject({
    code: "CONNECT_FAILED",
    at: "source",
    facts: { address: deaf.address, reason: "no answer within 300 ms" },
  });
  expect(rig.source.calls).toEqual([]);
  rig.expectUnharmed();
  await rig.succeeds();
});

for (const [option, ours, theirs] of [
  ["checksum", "true", "false"],
  ["chunkBytes", `${4 * MIB}`, `${1 * MIB}`],
] as const) {
  test(`a parameter that differs is PARAMETER_MISMATCH and named: ${option}`, async () => {
    const rig = new FaultRig(seed);
    const { source, destination } = await rig.fails({
      out: { [option]: JSON.parse(ours) },
      in: { [option]: JSON.parse(theirs) },
    });
    const failure = {
      code: "PARAMETER_MISMATCH",
      at: "destination",
      facts: {
        parameter: option === "checksum" ? "checksum" : "chunk-size",
        source: ours,
        destination: theirs,
      },
    };
    expect(source.failure).toMatchObject(failure);
    expect(destination.failure).toMatchObject(failure);
    expect(rig.source.calls).toEqual([]);
    expect(rig.destination.calls).not.toContain("prepare");
    await rig.succeeds();
  });
}

const PROVISIONS: Record<
  string,
  [(blocks: readonly BlockAnnouncement[]) => Block[], string, RegExp]
> = {
  missing: [(blocks) => pristine(blocks.slice(1)), "ram", /the destination lacks it/],
  extra: [
    (blocks) => pristine([...blocks, { name: "extra", sizeBytes: 4 * KIB, pageBytes: 4 * KIB }]),
    "extra",
    /the source lacks it/,
  ],
  larger: [
    (blocks) =>
      pristine(
        blocks.map((block) =>
          block.name === "rom" ? { ...block, sizeBytes: block.sizeBytes + 4 * KIB } : block,
        ),
      ),
    "rom",
    /135168 bytes at the source and 139264 at the destination/,
  ],
};

for (const [problem, [provide, block, says]] of Object.entries(PROVISIONS)) {
  test(`a block that is ${problem} is BLOCK_MISMATCH and named`, async () => {
    const rig = new FaultRig(seed);
    rig.destination = new RecordingDestination(provide);
    const { source, destination } = await rig.fails();
    for (const { failure } of [source, destination]) {
      expect(failure).toMatchObject({
        code: "BLOCK_MISMATCH",
        at: "destination",
        facts: { block },
      });
      expect(failure?.message).toMatch(says);
    }
    expect(rig.source.calls).toEqual([]);
    await rig.succeeds();
  });
}

test("a host that provides no memory at all is HOST_FAILED", async () => {
  const rig = new FaultRig(seed);
  rig.destination = new RecordingDestination(() => []);
  const verdicts = verdictsOf(await rig.fails());
  const failed = "HOST_FAILED at destination";
  expect(verdicts).toEqual({ source: failed, destination: failed });
  await rig.succeeds();
});
