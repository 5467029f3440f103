import { expect, test } from "vitest";
import { InvariantError } from "../base/assert.ts";
import { WireReader, WireWriter } from "../channels/wire-bytes.ts";
import { corruptFacts } from "./fixtures/corrupt-facts.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

function reader(bytes: ArrayLike<number>): WireReader {
  return new WireReader(Uint8Array.from(bytes), 2);
}

test("fields are pinned, byte for byte", () => {
  const bytes = new WireWriter()
    .u8(0x12)
    .u16(0x3456)
    .u32(0x789a_bcde)
    .u64(2 ** 53 - 1)
    .bigU64(0x0102_0304_0506_0708n)
    .f64(1.5)
    .bytes(Uint8Array.from([7, 8]))
    .str("aé€😀")
    .finish();
  expect(Buffer.from(bytes).toString("hex")).toBe(
    "12" +
      "5634" +
      "debc9a78" +
      "ffffffffffff1f00" +
      "0807060504030201" +
      "000000000000f83f" +
      "0708" +
      "0a00" +
      "61c3a9e282acf09f9880",
  );
});

test("what a writer wrote, a reader reads, at the bounds of every type", () => {
  const bytes = new WireWriter()
    .u8(255)
    .u16(0xffff)
    .u32(0xffff_ffff)
    .u64(Number.MAX_SAFE_INTEGER)
    .bigU64(2n ** 64n - 1n)
    .f64(Number.MAX_VALUE)
    .f64(0)
    .str("")
    .str("\uFEFF")
    .str("\0")
    .finish();
  const read = new WireReader(bytes, 0);
  expect(read.u8("a")).toBe(255);
  expect(read.u16("b")).toBe(0xffff);
  expect(read.u32("c")).toBe(0xffff_ffff);
  expect(read.u64("d")).toBe(Number.MAX_SAFE_INTEGER);
  expect(read.bigU64("e")).toBe(2n ** 64n - 1n);
  expect(read.f64("f")).toBe(Number.MAX_VALUE);
  expect(read.f64("g")).toBe(0);
  expect(read.str(0, "h")).toBe("");
  expect(read.str(3, "i"), "a byte order mark is text like any other").toBe("\uFEFF");
  expect(read.str(1, "j")).toBe("\0");
  read.end();
});

test(`any sequence of fields survives the wire, however long it grows (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 100; run += 1) {
    const writer = new WireWriter();
    const checks: ((read: WireReader) => void)[] = [];
    for (let field = random.below(60); field > 0; field -= 1) {
      if (random.below(2) === 0) {
        const value = random.below(2 ** 53 - 1);
        writer.u64(value);
        checks.push((read) => expect(read.u64("n")).toBe(value));
      } else {
        const text = "ä".repeat(random.below(300));
        writer.str(text);
        checks.push((read) => expect(read.str(600, "t")).toBe(text));
      }
    }
    const read = new WireReader(writer.finish(), 0);
    for (const check of checks) check(read);
    read.end();
  }
});

test("a reader keeps to its own part of a larger buffer", () => {
  const bytes = new Uint8Array(16).fill(0xff);
  bytes.set([1, 0, 2, 0], 6);
  const read = new WireReader(bytes.subarray(6, 10), 0);
  expect([read.u16("a"), read.u16("b")]).toEqual([1, 2]);
  expect(corruptFacts(() => read.u8("c"))).toMatchObject({ field: "body too short for c" });
});

test("every field that is cut off is FRAME_CORRUPT and named", () => {
  const reads: readonly [number, (read: WireReader) => unknown][] = [
    [1, (read) => read.u8("x")],
    [2, (read) => read.u16("x")],
    [4, (read) => read.u32("x")],
    [8, (read) => read.u64("x")],
    [8, (read) => read.bigU64("x")],
    [8, (read) => read.f64("x")],
    [5, (read) => read.bytes(5, "x")],
    [2, (read) => read.str(9, "x")],
  ];
  for (const [size, read] of reads) {
    for (let length = 0; length < size; length += 1) {
      const facts = corruptFacts(() => read(reader(new Uint8Array(length))));
      expect(facts).toEqual({ channel: 2, field: "body too short for x", found: size });
    }
  }
});

test("a count beyond 2^53 - 1 is FRAME_CORRUPT, whole in its facts", () => {
  for (const value of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
    const bytes = new WireWriter().bigU64(value).finish();
    const facts = corruptFacts(() => new WireReader(bytes, 2).u64("size"));
    expect(facts).toEqual({ channel: 2, field: "size", found: String(value) });
  }
});

test("a figure that is not finite or negative is FRAME_CORRUPT", () => {
  const values = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -1, -5e-324];
  for (const value of values) {
    const bytes = new WireWriter().f64(value).finish();
    const facts = corruptFacts(() => new WireReader(bytes, 2).f64("ms"));
    expect(facts).toEqual({ channel: 2, field: "ms", found: String(value) });
  }
});

test("a text that is longer than allowed is refused before it is looked at", () => {
  const announced = Uint8Array.from([4, 0]);
  const facts = corruptFacts(() => new WireReader(announced, 2).str(3, "name"));
  expect(facts).toEqual({ channel: 2, field: "length of name", found: 4 });
});

test("a text that ends early is FRAME_CORRUPT", () => {
  const facts = corruptFacts(() => reader([3, 0, 97, 98]).str(255, "name"));
  expect(facts).toEqual({ channel: 2, field: "body too short for name", found: 3 });
});

test("what is not UTF-8 is FRAME_CORRUPT, never a text that looks like it", () => {
  const bad = [
    [0x80],
    [0xff],
    [0xc3],
    [0xc0, 0xaf],
    [0xe0, 0x80, 0xaf],
    [0xed, 0xa0, 0x80],
    [0xf4, 0x90, 0x80, 0x80],
    [0x61, 0xe2, 0x82],
  ];
  for (const bytes of bad) {
    const facts = corruptFacts(() => reader([bytes.length, 0, ...bytes]).str(255, "name"));
    expect(facts).toEqual({ channel: 2, field: "name", found: "not UTF-8" });
  }
});

test("reserved bytes must be zero, all of them", () => {
  reader([0, 0, 0, 0]).zero(4);
  for (let at = 0; at < 4; at += 1) {
    const bytes = [0, 0, 0, 0];
    bytes[at] = 9;
    const facts = corruptFacts(() => reader(bytes).zero(4));
    expect(facts).toEqual({ channel: 2, field: "reserved", found: 9 });
  }
});

test("bytes that are left over are FRAME_CORRUPT", () => {
  const read = reader([1, 2, 3]);
  read.u16("a");
  expect(corruptFacts(() => read.end())).toEqual({ channel: 2, field: "body length", found: 3 });
});

test("a writer does not take numbers that its type cannot hold", () => {
  for (const write of [
    (writer: WireWriter) => writer.u16(-1),
    (writer: WireWriter) => writer.u16(0x1_0000),
    (writer: WireWriter) => writer.u32(-1),
    (writer: WireWriter) => writer.u32(2 ** 32),
    (writer: WireWriter) => writer.u64(-1),
    (writer: WireWriter) => writer.u64(1.5),
    (writer: WireWriter) => writer.u64(2 ** 53),
    (writer: WireWriter) => writer.str("x".repeat(0x1_0000)),
  ]) {
    expect(() => write(new WireWriter())).toThrow(InvariantError);
  }
});
