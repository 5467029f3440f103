import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import type { DeviceSection } from "../engine/host.ts";
import { decodeDevices, encodeDevices } from "../hosts/memory-guest/devices.ts";
import { mixedShape } from "./fixtures/memory-guest-shapes.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const SHAPE = "memory-guest/shape";
const DEVICES = {
  shape: mixedShape(3),
  states: [
    {
      turn: 1,
      sweeps: [
        { position: 29, round: 7 },
        { position: 269, round: 0 },
      ],
    },
    { turn: 0, sweeps: [{ position: 599, round: 2 ** 32 - 1 }] },
    { turn: 0, sweeps: [{ position: 5, round: 12 }] },
    { turn: 0, sweeps: [{ position: 0, round: 0 }] },
  ],
};

function json(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

function replaced(name: string, bytes: Uint8Array): DeviceSection[] {
  return encodeDevices(DEVICES).map((one) => (one.name === name ? { name, bytes } : one));
}

function withState(index: number, state: unknown): DeviceSection[] {
  return replaced(`memory-guest/vcpu-${index}`, json(state));
}

test("devices survive their sections unchanged, in any order", () => {
  expect(decodeDevices(encodeDevices(DEVICES))).toEqual(DEVICES);
  expect(decodeDevices(encodeDevices(DEVICES).toReversed())).toEqual(DEVICES);
});

const sections = encodeDevices(DEVICES);
const first = must(sections[0], "the shape comes first");
const hostile: readonly [string, readonly DeviceSection[], string][] = [
  ["no section", [], `section "${SHAPE}" is missing`],
  ["no shape", sections.slice(1), `section "${SHAPE}" is missing`],
  ["a vCPU missing", sections.slice(0, -1), 'section "memory-guest/vcpu-3" is missing'],
  ["a section twice", [...sections, first], "two sections have the same name"],
  ["a stranger's section", [...sections, { name: "e1000", bytes: json({}) }], '"e1000" is unknown'],
  ["a huge shape", replaced(SHAPE, new Uint8Array(2 ** 20)), "1048576 bytes, the limit is"],
  ["a huge vCPU", withState(0, " ".repeat(2000)), "2002 bytes, the limit is 1024"],
  ["an empty shape", replaced(SHAPE, new Uint8Array(0)), "is not JSON"],
  ["bytes that are not text", replaced(SHAPE, Uint8Array.of(0xff, 0xfe)), "is not JSON"],
  ["JSON cut short", replaced(SHAPE, first.bytes.subarray(0, -1)), "is not JSON"],
  ["a shape that is a list", replaced(SHAPE, json([])), "a shape must be an object"],
  [
    "a shape without blocks",
    replaced(SHAPE, json({ ...DEVICES.shape, blocks: [] })),
    "blocks must",
  ],
  ["a state that is null", withState(0, null), "no state"],
  ["a turn of nobody", withState(1, { turn: 1, sweeps: [{ position: 0, round: 0 }] }), "a turn"],
  ["sweeps missing", withState(0, { turn: 0, sweeps: [{ position: 0, round: 0 }] }), "2 sweeps"],
  ["sweeps that are a text", withState(0, { turn: 0, sweeps: "ab" }), "2 sweeps"],
  ["a sweep that is null", withState(1, { turn: 0, sweeps: [null] }), "no position in sweep 0"],
  [
    "a position outside",
    withState(1, { turn: 0, sweeps: [{ position: 600, round: 0 }] }),
    "no pos",
  ],
  [
    "half a position",
    withState(1, { turn: 0, sweeps: [{ position: 0.5, round: 0 }] }),
    "no positi",
  ],
  [
    "a round of 33 bits",
    withState(1, { turn: 0, sweeps: [{ position: 0, round: 2 ** 32 }] }),
    "no r",
  ],
];

for (const [name, given, problem] of hostile) {
  test(`devices with ${name} are an Error that says so`, () => {
    expect(() => decodeDevices(given)).toThrow(/^Cannot load the guest's devices: /);
    expect(() => decodeDevices(given)).toThrow(problem);
  });
}

test(`damaged sections are devices or an Error that says which (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 5000; run += 1) {
    const damaged = sections.map(({ name, bytes }) => ({ name, bytes: bytes.slice() }));
    const { bytes } = must(damaged[random.below(damaged.length)], "there are sections");
    for (let flips = 1 + random.below(3); flips > 0; flips -= 1) {
      bytes[random.below(bytes.length)] =
        random.below(4) === 0 ? 48 + random.below(10) : random.below(256);
    }
    try {
      const { shape, states } = decodeDevices(damaged);
      expect(states.length).toBe(shape.vcpus.length);
    } catch (error) {
      expect(String(error)).toMatch(/^Error: Cannot load the guest's devices: /);
    }
  }
});
