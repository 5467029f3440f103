import { constants, inflateRawSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { PAYLOAD_BYTES_MAX } from "../channels/frame.ts";
import { PARAMETERS } from "../engine/parameters.ts";
import { CODECS, codecNamed, codecOf } from "../workers/codecs/list.ts";
import { zstd } from "../workers/codecs/zstd.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const LEVELS: Readonly<Record<string, readonly number[]>> = {
  zstd: [PARAMETERS.zstdLevel.min, 3, PARAMETERS.zstdLevel.max],
  deflate: [PARAMETERS.deflateLevel.min, 6, PARAMETERS.deflateLevel.max],
};

/** Memory as guests have it. */
function contents(random: Prng, bytes: number): Record<string, Uint8Array> {
  const noise = new Uint8Array(bytes);
  random.bytes(noise);
  const text = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += 1) text[at] = 97 + ((at * 7 + (at >> 3)) % 5);
  const mixed = noise.slice();
  mixed.fill(0, bytes >> 2, bytes >> 1);
  return { zero: new Uint8Array(bytes), text, noise, mixed };
}

test("numbers and names are never given anew", () => {
  expect(CODECS.map(({ number, name }) => [number, name])).toEqual([
    [1, "zstd"],
    [2, "deflate"],
  ]);
  for (const codec of CODECS) {
    expect(codecOf(codec.number)).toBe(codec);
    expect(codecNamed(codec.name)).toBe(codec);
  }
  for (const number of [0, 3, 255]) expect(codecOf(number)).toBeUndefined();
});

for (const codec of CODECS) {
  test(`${codec.name} gives back what it was given, at every level and size (SEED=${seed})`, () => {
    const random = new Prng(seed);
    for (const bytes of [1, 2, 63, 64, 65, 4095, 4096, 64 * KIB, 512 * KIB, PAYLOAD_BYTES_MAX]) {
      // The highest levels take seconds for large payloads.
      const levels = must(LEVELS[codec.name], "every codec has levels");
      for (const [name, content] of Object.entries(contents(random, bytes))) {
        for (const level of bytes > 64 * KIB ? levels.slice(0, 1) : levels) {
          const small = codec.compress(content, level);
          const back = codec.expand(small, bytes);
          expect(back?.length, `${name} ${bytes} level ${level}`).toBe(bytes);
          expect(Buffer.compare(back ?? small, content)).toBe(0);
        }
      }
    }
  });

  test(`${codec.name} takes nothing but what expands to just the bytes announced (SEED=${seed})`, () => {
    const random = new Prng(seed);
    for (const bytes of [100, 4096, 512 * KIB]) {
      for (const content of Object.values(contents(random, bytes))) {
        const small = codec.compress(content, 1);
        expect(codec.expand(small, bytes + 1)).toBeNull();
        expect(codec.expand(small, bytes - 1)).toBeNull();
        expect(codec.expand(small, 1)).toBeNull();
        expect(codec.expand(small, PAYLOAD_BYTES_MAX)).toBeNull();
        expect(codec.expand(small.subarray(0, small.length - 1), bytes)).toBeNull();
        expect(codec.expand(Buffer.concat([small, Buffer.from([0])]), bytes)).toBeNull();
        expect(codec.expand(Buffer.concat([small, small]), bytes)).toBeNull();
        const nothing = codec.compress(new Uint8Array(0), 1);
        expect(codec.expand(Buffer.concat([small, nothing]), bytes)).toBeNull();
      }
    }
    expect(codec.expand(new Uint8Array(0), 4096)).toBeNull();
  });

  test(`${codec.name} ends a decompression bomb at the limit (SEED=${seed})`, () => {
    const bomb = codec.compress(new Uint8Array(64 * MIB), 9);
    expect(bomb.length).toBeLessThan(512 * KIB);
    const before = process.memoryUsage().arrayBuffers;
    for (const bytes of [1, 4096, PAYLOAD_BYTES_MAX]) expect(codec.expand(bomb, bytes)).toBeNull();
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(32 * MIB);
  });

  test(`${codec.name} makes of any bytes what is announced, or nothing (SEED=${seed})`, () => {
    const random = new Prng(seed);
    let taken = 0;
    for (let run = 0; run < 3000; run += 1) {
      const bytes = 1 + random.below(8192);
      const content = Object.values(contents(random, bytes))[random.below(4)] ?? new Uint8Array(1);
      const small = Buffer.from(codec.compress(content, 1));
      for (let flips = random.below(4); flips > 0; flips -= 1) {
        const at = random.below(small.length);
        small[at] = (small[at] ?? 0) ^ (1 << random.below(8));
      }
      const cut = random.below(8) === 0 ? small.subarray(0, random.below(small.length)) : small;
      const back = codec.expand(cut, bytes);
      if (back === null) continue;
      taken += 1;
      expect(back.length).toBe(bytes);
    }
    expect(taken).toBeGreaterThan(500);
  });
}

test("what Node's zlib expands is what fflate has compressed, and the other way round", () => {
  const [content = new Uint8Array(1)] = [contents(new Prng(1), 100_000)["mixed"]];
  const deflate = codecNamed("deflate");
  const small = deflate?.compress(content, 6) ?? content;
  expect(Buffer.compare(inflateRawSync(small), content)).toBe(0);
  expect(Buffer.compare(zstdDecompressSync(zstd.compress(content, 1)), content)).toBe(0);
});

test("a frame that just fills a piece of Node's is followed by an empty one, and ours fills none", () => {
  const content = must(contents(new Prng(1), 100_000)["mixed"], "there is a mixture");
  const params = { [constants.ZSTD_c_compressionLevel]: 1 };
  const one = zstd.compress(content, 1);
  const two = zstdCompressSync(content, { params, chunkSize: one.length });
  expect(two.length).toBeGreaterThan(one.length);
  expect(Buffer.compare(zstdDecompressSync(two), content)).toBe(0);
  expect(zstd.expand(two, content.length)).toBe(null); // The wire allows one frame.
  // The longest that comes of a payload is of noise.
  for (const bytes of [1, 100, 4 * KIB, 512 * KIB, 1024 * KIB]) {
    const noise = must(contents(new Prng(bytes), bytes)["noise"], "there is noise");
    expect(zstd.expand(zstd.compress(noise, 1), noise.length)?.length).toBe(noise.length);
  }
});

test("zstd grants no more window than a payload can need, whatever a frame asks for", () => {
  const content = contents(new Prng(1), 512 * KIB)["mixed"] ?? new Uint8Array(1);
  const params = { [constants.ZSTD_c_contentSizeFlag]: 0 };
  const small = Buffer.from(zstdCompressSync(content, { params }));
  // RFC 8878, 3.1.1.1.2: the window descriptor, 2^(10 + exponent) bytes and eighths of that.
  const windowAt = 5;
  const mebibyte = 10 << 3;
  for (const [descriptor, isGranted] of [
    [mebibyte, true],
    [mebibyte + 1, false],
    [mebibyte + 8, false],
    [17 << 3, false],
    [0xff, false],
  ] as const) {
    small[windowAt] = descriptor;
    expect(zstd.expand(small, content.length) !== null, `${descriptor}`).toBe(isGranted);
  }
});
