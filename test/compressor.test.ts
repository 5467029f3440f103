import { expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { useClock } from "../base/clock.ts";
import { KIB, MIB } from "../base/units.ts";
import { CODECS, codecNamed } from "../workers/codecs/list.ts";
import { Compressor } from "../workers/compressor.ts";
import {
  CODEC_COUNTERS,
  type CodecSettings,
  CounterRow,
  createControl,
  readCodecSettings,
  setCodecSettings,
} from "../workers/control.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const NONE: CodecSettings = { codec: 0, level: 1, isAuto: false, cpuShare: 0, extraTime: 0 };
const numberOf = (name: string) => must(codecNamed(name), "a test names codecs that exist").number;
const ZSTD = { ...NONE, codec: numberOf("zstd") };
const DEFLATE = { ...NONE, codec: numberOf("deflate") };
const AUTO = { ...ZSTD, isAuto: true };

const TEXT = Uint8Array.from({ length: 64 * KIB }, (_, at) => 97 + ((at * 7 + (at >> 4)) % 7));

function noise(bytes: number): Uint8Array {
  const made = new Uint8Array(bytes);
  new Prng(seed).bytes(made);
  return made;
}

function makeCompressor(settings: CodecSettings) {
  const control = createControl(1);
  setCodecSettings(control, settings);
  const counters = new CounterRow(control, 0);
  return { control, counters, compressor: new Compressor(control, counters) };
}

test("settings come back as they were set, each of them", () => {
  const { control } = makeCompressor(NONE);
  for (const codec of [0, 1, 2, 255]) {
    for (const level of [1, 9, 19, 255]) {
      for (const isAuto of [false, true]) {
        for (const cpuShare of [0, 0.25, 1, 1024]) {
          for (const extraTime of [0, 0.01, 10]) {
            const settings = { codec, level, isAuto, cpuShare, extraTime };
            setCodecSettings(control, settings);
            expect(readCodecSettings(control)).toEqual(settings);
          }
        }
      }
    }
  }
});

test("a share of a core is never rounded to nothing, which would be no limit", () => {
  const { control } = makeCompressor({ ...AUTO, cpuShare: 0.01 / 64 });
  expect(readCodecSettings(control).cpuShare).toBeGreaterThan(0);
});

test("a level never meets the codec of another setting", () => {
  const { control } = makeCompressor({ ...ZSTD, level: 19 });
  const codecWords = control.codec.length;
  // Whatever word is written first, a reader in between sees one setting or the other.
  for (let word = 0; word < codecWords; word += 1) {
    const before = control.codec.slice();
    setCodecSettings(control, { ...DEFLATE, level: 9 });
    const after = control.codec.slice();
    control.codec.set(before);
    Atomics.store(control.codec, word, after[word] ?? 0);
    const { codec, level } = readCodecSettings(control);
    expect([
      [ZSTD.codec, 19],
      [DEFLATE.codec, 9],
    ]).toContainEqual([codec, level]);
    control.codec.set(before);
  }
});

test("without a codec nothing is compressed", () => {
  const { compressor, counters } = makeCompressor(NONE);
  expect(compressor.compress(TEXT, { chunk: 0, round: 1 })).toBeNull();
  expect(counters.read("codecTriedBytes")).toBe(0);
});

for (const codec of CODECS) {
  test(`${codec.name} compresses what shrinks, and counts it`, () => {
    const settings = { ...NONE, codec: codec.number };
    const { compressor, counters } = makeCompressor(settings);
    const made = must(compressor.compress(TEXT, { chunk: 0, round: 1 }), "text shrinks");
    expect(made.codec).toBe(codec);
    expect(made.bytes.length).toBeLessThan(TEXT.length / 4);
    expect(Buffer.compare(codec.expand(made.bytes, TEXT.length) ?? NOTHING, TEXT)).toBe(0);
    expect(counters.read("codecTriedBytes")).toBe(TEXT.length);
    expect(counters.read("codecBeforeBytes")).toBe(TEXT.length);
    expect(counters.read("codecAfterBytes")).toBe(made.bytes.length);
    expect(counters.read("codecMs")).toBeGreaterThan(0);
  });
}

const NOTHING = new Uint8Array(0);

test(`memory that does not shrink goes as it is, and is soon left alone (SEED=${seed})`, () => {
  const { compressor, counters } = makeCompressor(ZSTD);
  const payload = noise(64 * KIB);
  for (let frame = 0; frame < 1000; frame += 1) {
    const memory = { chunk: Math.floor(frame / 4), round: 1 };
    expect(compressor.compress(payload, memory)).toBeNull();
  }
  const tries = counters.read("codecTriedBytes") / payload.length;
  expect(tries).toBeGreaterThan(5);
  expect(tries).toBeLessThan(100);
  expect(counters.read("codecBeforeBytes")).toBe(0);
});

test(`memory that shrinks too little to be worth it goes as it is (SEED=${seed})`, () => {
  const { compressor } = makeCompressor(ZSTD);
  const payload = noise(64 * KIB);
  payload.fill(0, 0, 1 * KIB);
  expect(compressor.compress(payload, { chunk: 0, round: 1 })).toBeNull();
});

test("a page alone is not worth a codec", () => {
  const { compressor, counters } = makeCompressor(ZSTD);
  expect(compressor.compress(TEXT.subarray(0, 4096), { chunk: 0, round: 1 })).toBeNull();
  expect(counters.read("codecTriedBytes")).toBe(0);
  expect(compressor.compress(TEXT.subarray(0, 8192), { chunk: 0, round: 1 })).not.toBeNull();
});

test(`what is set anew takes effect with the next frame, and starts from nothing (SEED=${seed})`, () => {
  const { compressor, control, counters } = makeCompressor(ZSTD);
  const memory = { chunk: 0, round: 1 };
  expect(compressor.compress(TEXT, memory)?.codec.name).toBe("zstd");
  setCodecSettings(control, DEFLATE);
  expect(compressor.compress(TEXT, memory)?.codec.name).toBe("deflate");
  setCodecSettings(control, NONE);
  expect(compressor.compress(TEXT, memory)).toBeNull();
  setCodecSettings(control, ZSTD);
  compressor.compress(noise(64 * KIB), memory);
  const later = { chunk: 0, round: 2 };
  expect(compressor.compress(TEXT, later), "this chunk is left alone").toBeNull();
  setCodecSettings(control, { ...ZSTD, level: 2 });
  expect(compressor.compress(TEXT, later), "another level may do it").not.toBeNull();
  const tried = counters.read("codecTriedBytes");
  setCodecSettings(control, { ...ZSTD, level: 2, cpuShare: 1 });
  expect(compressor.compress(TEXT, { chunk: 1, round: 1 })).not.toBeNull();
  expect(counters.read("codecTriedBytes")).toBeGreaterThan(tried);
});

/** A write that blocked for so long. */
function written(blockedMs: number) {
  return { elapsedMs: blockedMs, waitedMs: blockedMs };
}

test("auto tells what it chose; a codec that is set has nothing to tell", () => {
  const { compressor, counters } = makeCompressor(ZSTD);
  compressor.begin();
  compressor.learn({ payloadBytes: 1, wireBytes: 1, write: written(0) });
  expect(counters.read("choiceWay")).toBe(0);
  const auto = makeCompressor(AUTO);
  auto.compressor.begin();
  auto.compressor.compress(TEXT, { chunk: 0, round: 1 });
  auto.compressor.learn({ payloadBytes: TEXT.length, wireBytes: 100, write: written(0) });
  expect(auto.counters.read("choiceWay")).toBe(2);
});

test("a channel that is taken up again goes on counting, and tells nothing where auto has ended", () => {
  const { compressor, control, counters } = makeCompressor(AUTO);
  const learn = (made: Compressor): void => {
    made.begin();
    made.compress(TEXT, { chunk: 0, round: 1 });
    made.learn({ payloadBytes: TEXT.length, wireBytes: 100, write: written(0) });
  };
  learn(compressor);
  counters.add("choiceChanges", 3);
  learn(new Compressor(control, counters));
  expect([counters.read("choiceWay"), counters.read("choiceChanges")]).toEqual([2, 3]);
  setCodecSettings(control, NONE);
  learn(new Compressor(control, counters));
  expect([counters.read("choiceWay"), counters.read("choiceChanges")]).toEqual([0, 3]);
});

test("auto spends no more processor time than it may", () => {
  const share = 0.05;
  const { compressor, counters } = makeCompressor({ ...AUTO, level: 9, cpuShare: share });
  const payload = new Uint8Array(512 * KIB);
  for (let at = 0; at < payload.length; at += TEXT.length) payload.set(TEXT, at);
  let largestMs = 0;
  let refused = 0;
  const startMs = performance.now();
  for (let chunk = 0; refused < 20; chunk += 1) {
    const before = counters.read("codecMs");
    if (compressor.compress(payload, { chunk, round: 1 }) === null) refused += 1;
    largestMs = Math.max(largestMs, counters.read("codecMs") - before);
  }
  const elapsedMs = performance.now() - startMs;
  const burstMs = 20;
  expect(counters.read("codecMs")).toBeLessThanOrEqual(burstMs + elapsedMs * share + largestMs);
});

/** Words: the harder the try, the fewer the bytes. */
function prose(): Uint8Array {
  const payload = new Uint8Array(512 * KIB);
  const random = new Prng(seed);
  const words = Array.from({ length: 500 }, () => noise(3 + random.below(9)));
  for (let at = 0; at < payload.length; ) {
    const word = must(words[random.below(words.length)], "there are words");
    payload.set(word.subarray(0, payload.length - at), at);
    at += word.length;
  }
  return payload;
}

/** A clock that stands still but for the link, which takes ages. */
function makeSlowLink(compressor: Compressor) {
  let ms = 0;
  const never = (): (() => void) => () => {};
  onTestFinished(useClock({ nowMs: () => ms, cpuMs: () => 0, after: never, every: never }));
  compressor.begin();
  const learn = (payload: Uint8Array, wireBytes: number): void => {
    ms += 60_000;
    compressor.learn({ payloadBytes: payload.length, wireBytes, write: written(60_000) });
  };
  return { learn };
}

test("what the limit sends raw is not booked as what the codec costs", () => {
  const { compressor, counters } = makeCompressor({ ...AUTO, cpuShare: 0.01 });
  // Each look at this clock takes 4 ms, and so does each payload in the codec.
  let ms = 0;
  const never = (): (() => void) => () => {};
  onTestFinished(useClock({ nowMs: () => (ms += 4), cpuMs: () => 0, after: never, every: never }));
  compressor.begin();
  const went = { raw: 0, codec: 0 };
  for (let chunk = 0; chunk < 2000; chunk += 1) {
    const made = compressor.compress(TEXT, { chunk, round: 1 });
    went[made === null ? "raw" : "codec"] += 1;
    const blockedMs = made === null ? 1 : 100;
    ms += blockedMs;
    const wireBytes = made?.bytes.length ?? TEXT.length;
    compressor.learn({ payloadBytes: TEXT.length, wireBytes, write: written(blockedMs) });
  }
  expect(went.codec).toBeGreaterThan(5);
  expect(went.raw).toBeGreaterThan(went.codec * 10);
  expect(counters.read("choiceWay")).toBe(2);
  const perMib = MIB / TEXT.length;
  expect(counters.read("choiceCodecMsPerMiB")).toBeGreaterThan(100 * perMib);
  expect(counters.read("choiceRawMsPerMiB")).toBeLessThan(20 * perMib);
  expect(counters.read("choiceRawMsPerMiB")).toBeGreaterThan(0);
});

test(`auto tries harder while the link is waited for, and says what samples came to (SEED=${seed})`, () => {
  const { compressor, counters } = makeCompressor(AUTO);
  const payload = prose();
  const sizes: number[] = [];
  const { learn } = makeSlowLink(compressor);
  for (let chunk = 0; chunk < 12; chunk += 1) {
    const made = must(compressor.compress(payload, { chunk, round: 1 }), "words shrink");
    sizes.push(made.bytes.length);
    expect(Buffer.compare(made.codec.expand(made.bytes, payload.length) ?? NOTHING, payload)).toBe(
      0,
    );
    learn(payload, made.bytes.length);
  }
  expect(counters.read("choiceCodecChanges")).toBeGreaterThan(0);
  expect(counters.read("choiceCodec")).toBeGreaterThan(0);
  expect(must(sizes.at(-1), "there are sizes")).toBeLessThan((sizes[0] ?? 0) * 0.97);
  for (const { share } of CODEC_COUNTERS) expect(counters.read(share)).toBeGreaterThan(0);
});

test(`a look at another codec takes time, and is no sign that the link has become fast (SEED=${seed})`, () => {
  const { compressor, counters } = makeCompressor(AUTO);
  const payload = prose();
  let ms = 0;
  const never = (): (() => void) => () => {};
  onTestFinished(useClock({ nowMs: () => ms, cpuMs: () => 0, after: never, every: never }));
  compressor.begin();
  const seen = () => CODEC_COUNTERS.map(({ share }) => counters.read(share)).join();
  let looks = 0;
  for (let chunk = 0; chunk < 12; chunk += 1) {
    const before = seen();
    const made = must(compressor.compress(payload, { chunk, round: 1 }), "words shrink");
    const hasLooked = seen() !== before;
    if (hasLooked) looks += 1;
    // While samples are made the link drains, and nothing is waited for behind them.
    ms += 60_000;
    const write = written(hasLooked ? 0 : 60_000);
    compressor.learn({ payloadBytes: payload.length, wireBytes: made.bytes.length, write });
  }
  expect(looks).toBeGreaterThan(2);
  expect(counters.read("choiceCodec")).toBeGreaterThan(0);
  expect(counters.read("choiceRawMsPerMiB"), "raw memory was not tried").toBe(0);
});

test(`what auto tells belongs to what is set, and its changes are counted on (SEED=${seed})`, () => {
  const { compressor, control, counters } = makeCompressor(AUTO);
  const payload = prose();
  const { learn } = makeSlowLink(compressor);
  const send = (frames: number): void => {
    for (let chunk = 0; chunk < frames; chunk += 1) {
      const made = compressor.compress(payload, { chunk, round: 1 });
      learn(payload, made?.bytes.length ?? payload.length);
    }
  };
  const changes = () => counters.read("choiceCodecChanges");
  const samples = () => CODEC_COUNTERS.map(({ share }) => counters.read(share));
  send(12);
  const before = changes();
  expect(before).toBeGreaterThan(0);
  for (const settings of [
    { ...AUTO, level: 2 },
    { ...AUTO, level: 2, extraTime: 1 },
  ]) {
    setCodecSettings(control, settings);
    const counted = changes();
    send(1);
    expect([counters.read("choiceWay"), counters.read("choiceCodec")]).toEqual([2, 0]);
    expect(samples()).toEqual(CODEC_COUNTERS.map(() => 0));
    expect(changes()).toBe(counted);
    send(12);
    expect(changes()).toBeGreaterThan(counted);
    for (const share of samples()) expect(share).toBeGreaterThan(0);
  }
  const counted = changes();
  setCodecSettings(control, NONE);
  send(1);
  expect(counters.read("choiceWay"), "nothing is chosen any more").toBe(0);
  expect(counters.read("choiceCodecMsPerMiB")).toBe(0);
  expect(changes()).toBe(counted);
});
