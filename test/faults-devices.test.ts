import { beforeAll, expect, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import type { DeviceSection } from "../engine/host.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

beforeAll(warmUp);

function section(name: string, size: number): DeviceSection {
  const bytes = new Uint8Array(size);
  new Prng(seed).bytes(bytes);
  return { name, bytes };
}

test(`devices of many sections, empty ones and large ones among them, arrive exactly (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const sizes = [0, 1, 256 * KIB, 256 * KIB + 1, MIB, 0, 256 * KIB - 1, 3 * MIB + 5, 0];
  rig.source.sections = [
    ...sizes.map((size, index) => section(`device/${index} ä`, size)),
    ...Array.from({ length: 300 }, (_, index) => section(`small/${index}`, index % 40)),
    section("n".repeat(255), 7),
  ];
  await rig.succeeds();
});

test(`a guest without any device state arrives (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.sections = [];
  await rig.succeeds();
});

test(`devices of just the limit arrive, one byte more is DEVICES_TOO_LARGE (SEED=${seed})`, async () => {
  for (const side of ["source", "destination"] as const) {
    const rig = new FaultRig(seed);
    const deviceLimitBytes = 64 * KIB;
    const limits = { [side === "source" ? "out" : "in"]: { deviceLimitBytes } };
    rig.source.sections = [section("a", deviceLimitBytes - 10), section("b", 11)];
    const outcome = await rig.fails(limits);
    for (const { failure } of [outcome.source, outcome.destination]) {
      expect(failure).toMatchObject({
        code: "DEVICES_TOO_LARGE",
        at: side,
        facts: { bytes: deviceLimitBytes + 1, limitBytes: deviceLimitBytes },
      });
    }
    expect(rig.source.calls.slice(-3)).toEqual(["saveDevices", "resume", "stopDirtyLog"]);
    rig.source.sections = [section("a", deviceLimitBytes - 10), section("b", 10)];
    await rig.succeeds(limits);
  }
});

test(`a limit of nothing lets sections without bytes through (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.sections = [section("a", 0), section("b", 0)];
  await rig.succeeds({ out: { deviceLimitBytes: 0 }, in: { deviceLimitBytes: 0 } });
});

for (const [problem, sections, says] of [
  ["two of one name", [section("a", 1), section("a", 2)], /same name/],
  ["a name too long", [section("x".repeat(256), 1)], /longer than 255 bytes/],
  ["too many", Array.from({ length: 4097 }, (_, i) => section(`${i}`, 0)), /more than 4096/],
] as const) {
  test(`sections that cannot travel are HOST_FAILED: ${problem} (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const usual = rig.source.sections;
    rig.source.sections = sections;
    const outcome = await rig.fails();
    expect(verdictsOf(outcome)).toEqual({
      source: "HOST_FAILED at source",
      destination: "HOST_FAILED at source",
    });
    expect(outcome.source.failure?.message).toMatch(says);
    rig.source.sections = usual;
    await rig.succeeds();
  });
}
