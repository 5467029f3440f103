import { expect, test } from "vitest";
import { GIB, KIB, MIB } from "../base/units.ts";
import { checkShape } from "../hosts/memory-guest/shape.ts";
import { mixedShape, smallShape } from "./fixtures/memory-guest-shapes.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

test("a good shape comes back equal, frozen, and without fields that it does not have", () => {
  const given = { ...mixedShape(1), stray: 1 };
  const shape = checkShape(given);
  expect(shape).toEqual(mixedShape(1));
  expect(Object.isFrozen(shape)).toBe(true);
});

const vcpu = smallShape(1).vcpus[0];
const wrong: readonly [string, unknown, string][] = [
  ["nothing", null, "a shape must be an object"],
  ["a seed that is no integer", { ...smallShape(1), seed: 0.5 }, "seed must be"],
  ["a seed of 33 bits", { ...smallShape(1), seed: 2 ** 32 }, "seed must be"],
  ["shares above 1", { ...smallShape(1), content: { zero: 1, text: 1, random: 0 } }, "sum to 1"],
  [
    "a negative share",
    { ...smallShape(1), content: { zero: 2, text: -1, random: 0 } },
    "fractions",
  ],
  [
    "a share that is NaN",
    { ...smallShape(1), content: { zero: NaN, text: 1, random: 0 } },
    "fract",
  ],
  ["no block", { ...smallShape(1), blocks: [] }, "blocks must be a list"],
  ["blocks that are a text", { ...smallShape(1), blocks: "ram" }, "blocks must be a list"],
  ["257 blocks", { ...smallShape(1), blocks: Array(257).fill({}) }, "blocks must be a list"],
  ["a nameless block", withBlock({ name: "" }), "block 0 must have a name"],
  ["a page of 2 KiB", withBlock({ pageBytes: 2 * KIB }), "block 0 must have a page size"],
  ["a page of 2 GiB", withBlock({ pageBytes: 2 * GIB }), "block 0 must have a page size"],
  ["a page of 12 KiB", withBlock({ pageBytes: 12 * KIB }), "block 0 must have a page size"],
  ["half a page", withBlock({ sizeBytes: MIB + 2 * KIB }), "block 0 must have a size of whole"],
  ["an empty block", withBlock({ sizeBytes: 0 }), "block 0 must have a size of whole pages"],
  ["one name for two blocks", { ...smallShape(1), blocks: twice() }, '"ram" comes twice'],
  ["65 vCPUs", { ...smallShape(1), vcpus: Array(65).fill(vcpu) }, "vcpus must be a list"],
  ["a vCPU that is null", { ...smallShape(1), vcpus: [null] }, "vcpus must be a list"],
  ["a vCPU without a block", smallShape(1, { block: "rom" }), "vcpu 0 block must be the name"],
  ["an unknown pattern", smallShape(1, { pattern: "zigzag" as "hot" }), "vcpu 0 pattern"],
  ["a page before the first", smallShape(1, { firstPage: -1 }), "vcpu 0 firstPage"],
  ["an empty region", smallShape(1, { pageCount: 0 }), "vcpu 0 pageCount"],
  ["a hot region without rest", smallShape(1, { pattern: "hot", pageCount: 1 }), "pageCount"],
  ["a region beyond its block", smallShape(1, { pageCount: 254 }), "vcpu 0 must stay in block"],
  ["a negative rate", smallShape(1, { rateBytesPerSecond: -1 }), "vcpu 0 rateBytesPerSecond"],
  ["an endless rate", smallShape(1, { rateBytesPerSecond: Infinity }), "rateBytesPerSecond"],
  ["7 changed bytes", smallShape(1, { changedBytes: 7 }), "vcpu 0 changedBytes must be in 8..4096"],
  ["more bytes than a page", smallShape(1, { changedBytes: 4097 }), "vcpu 0 changedBytes"],
  [
    "shared pages",
    { ...smallShape(1), vcpus: [vcpu, { ...vcpu, firstPage: 252, pageCount: 2 }] },
    "vcpus 0 and 1 must not share pages",
  ],
];

for (const [name, shape, problem] of wrong) {
  test(`a shape with ${name} is a RangeError that says so`, () => {
    expect(() => checkShape(shape)).toThrow(RangeError);
    expect(() => checkShape(shape)).toThrow(problem);
  });
}

test("all problems of a shape are reported at once", () => {
  const shape = { ...smallShape(1, { changedBytes: 0, firstPage: -1 }), seed: -1 };
  expect(() => checkShape(shape)).toThrow(/seed .*; vcpu 0 firstPage .*; vcpu 0 changedBytes/);
});

test(`a damaged shape is a shape or a RangeError (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const values = [null, -1, 0, 1.5, 2 ** 53, NaN, "", "ram", [], {}, [[]], true, undefined];
  const pick = () => values[random.below(values.length)];
  for (let run = 0; run < 3000; run += 1) {
    const shape: unknown = structuredClone(mixedShape(1));
    let at = shape as Record<string, unknown>;
    for (;;) {
      const keys = Object.keys(at);
      const key = keys[random.below(keys.length)] ?? "none";
      const inner = at[key];
      if (typeof inner !== "object" || inner === null || random.below(4) === 0) {
        at[key] = pick();
        break;
      }
      at = inner as Record<string, unknown>;
    }
    try {
      expect(checkShape(shape).blocks.length).toBeGreaterThan(0);
    } catch (error) {
      expect(error).toBeInstanceOf(RangeError);
    }
  }
});

function withBlock(change: object) {
  return { ...smallShape(1), blocks: [{ ...smallShape(1).blocks[0], ...change }], vcpus: [] };
}

function twice() {
  return [...smallShape(1).blocks, ...smallShape(1).blocks];
}
