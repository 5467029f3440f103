import { expect, test } from "vitest";
import { letGo } from "../workers/codecs/let-go.ts";
import { CODECS } from "../workers/codecs/list.ts";

for (const codec of CODECS) {
  test(`what ${codec.name} makes is nobody else's: memory is back as soon as it is let go`, () => {
    const page = new Uint8Array(1 << 20).fill(7);
    const small = codec.compress(page, 1);
    const large = codec.expand(new Uint8Array(small), page.length);
    expect(large).not.toBe(null);
    const content = new Uint8Array(large as Uint8Array);
    letGo(large as Uint8Array);
    expect(large?.length).toBe(0);
    expect(Buffer.compare(content, page)).toBe(0);
    letGo(small);
    // Whatever came of its memory, that of others is untouched.
    const again = codec.expand(new Uint8Array(codec.compress(page, 1)), page.length);
    expect(Buffer.compare(again ?? content.subarray(1), page)).toBe(0);
  });
}

test("memory that others have a part of stays", () => {
  const ours = Buffer.from("ours");
  const theirs = Buffer.from("theirs");
  expect(ours.buffer).toBe(theirs.buffer);
  letGo(ours);
  expect(theirs.toString()).toBe("theirs");
  const shared = new Uint8Array(new SharedArrayBuffer(1 << 20));
  letGo(shared);
  expect(shared.length).toBe(1 << 20);
});
