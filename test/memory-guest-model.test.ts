import { expect, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import { type ContentKind, kindOf } from "../hosts/memory-guest/content.ts";
import { BlockModel } from "../hosts/memory-guest/model.ts";
import { rewriteOf, rewritePage } from "../hosts/memory-guest/rewrite.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import { PAGE_BYTES, smallShape } from "./fixtures/memory-guest-shapes.ts";

const PAGE_WORDS = PAGE_BYTES / 4;

function painted(shape: GuestShape, tile: number, writes = 0): Int32Array {
  const model = new BlockModel(shape, 0);
  const words = new Int32Array(model.tileWords);
  model.paint(words, 0, { tile, writes });
  return words;
}

function differences(a: Int32Array, b: Int32Array): number {
  const [x, y] = [new Uint8Array(a.buffer), new Uint8Array(b.buffer)];
  return x.reduce((count, byte, index) => count + (byte === y[index] ? 0 : 1), 0);
}

for (const changedBytes of [8, 9, 10, 12, 13, 100, 1000, 2051, 3000, 4095, 4096]) {
  test(`what a vCPU writes, ${changedBytes} bytes a time, is what the model says`, () => {
    const shape = smallShape(5, { changedBytes });
    const model = new BlockModel(shape, 0);
    const rewrite = rewriteOf(PAGE_BYTES, changedBytes);
    for (const tile of [3, 4, 5, 6, 7, 8]) {
      const words = painted(shape, tile);
      for (let writes = 1; writes <= 300; writes += 1) {
        const before = words.slice();
        rewritePage(words, 0, rewrite);
        if (writes > 3 && writes < 297) continue;
        const expected = new Int32Array(model.tileWords);
        model.paint(expected, 0, { tile, writes });
        expect(words).toEqual(expected);
        // Of the two counters, all bytes are written, but only those that carry change.
        const carried = writes === 256 ? 4 : 2;
        expect(differences(words, before)).toBe(changedBytes - 8 + carried);
      }
    }
  });
}

test("a page begins and ends with the number of its writes, everywhere in a huge page too", () => {
  const shape = {
    ...smallShape(5, { firstPage: 0, pageCount: 2, changedBytes: 5000 }),
    blocks: [{ name: "ram", sizeBytes: MIB, pageBytes: 128 * KIB }],
  };
  const rewrite = rewriteOf(128 * KIB, 5000);
  const model = new BlockModel(shape, 0);
  expect([model.tileWords, model.tileCount]).toEqual([PAGE_WORDS, 256]);
  const page = new Int32Array((128 * KIB) / 4);
  const wanted = page.slice();
  for (let tile = 0; tile < 32; tile += 1) {
    model.paint(page, tile * PAGE_WORDS, { tile, writes: 0 });
    model.paint(wanted, tile * PAGE_WORDS, { tile, writes: 700 });
  }
  for (let write = 0; write < 700; write += 1) rewritePage(page, 0, rewrite);
  expect(page).toEqual(wanted);
  expect([page[0], page.at(-1)]).toEqual([700, 700]);
});

test("pages that nobody writes do not depend on how often others are written", () => {
  const shape = smallShape(5);
  expect(painted(shape, 0, 9)).toEqual(painted(shape, 0, 0));
  expect(painted(shape, 255, 9)).toEqual(painted(shape, 255, 0));
});

test("content is spread in its shares over the pages, and depends on seed, block and page", () => {
  const shape = { ...smallShape(5), content: { zero: 0.5, text: 0.2, random: 0.3 } };
  const kinds = (seed: number, block: number) =>
    Array.from({ length: 20_000 }, (_, page) => kindOf({ ...shape, seed }, block, page));
  const share = (kind: ContentKind) => kinds(5, 0).filter((one) => one === kind).length / 20_000;
  expect(share("zero")).toBeCloseTo(0.5, 1);
  expect(share("text")).toBeCloseTo(0.2, 1);
  expect(share("random")).toBeCloseTo(0.3, 1);
  expect(kinds(5, 0)).toEqual(kinds(5, 0));
  expect(kinds(6, 0)).not.toEqual(kinds(5, 0));
  expect(kinds(5, 1)).not.toEqual(kinds(5, 0));
});

for (const kind of ["zero", "text", "random"] as const) {
  test(`a guest of nothing but ${kind} has nothing else`, () => {
    const content = { zero: 0, text: 0, random: 0, [kind]: 1 };
    const shape = { ...smallShape(5), content };
    for (let page = 0; page < 5000; page += 1) expect(kindOf(shape, 0, page)).toBe(kind);
    const bytes = new Uint8Array(painted(shape, 1).buffer);
    const distinct = new Set(bytes).size;
    if (kind === "zero") expect(distinct).toBe(1);
    if (kind === "text") expect(bytes.every((byte) => byte >= 32 && byte < 127)).toBe(true);
    if (kind === "random") expect(distinct).toBeGreaterThan(250);
  });
}

test("no two pages of text or noise are alike", () => {
  const shape = { ...smallShape(5), content: { zero: 0, text: 0.5, random: 0.5 }, vcpus: [] };
  const pages = Array.from({ length: 256 }, (_, tile) => painted(shape, tile).join());
  expect(new Set(pages).size).toBe(256);
});
