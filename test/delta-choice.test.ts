import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import { type Compared, DeltaChoice, type Terms } from "../workers/delta-choice.ts";

const CHUNK = 7;
const TERMS: Terms = { way: "raw", isSpent: false, extraTime: 0 };

/** Pages of 4 KiB that were all found, of which so many changed too much; it took no time. */
function compared(hits: number, overflows: number): Compared {
  const pageBytes = Math.max(1, hits) * 4096;
  return { hits, overflows, pageBytes, savedBytes: pageBytes - overflows * 4096, ms: 0 };
}

/** In which of the rounds the chunk is tried, if each try comes to `outcome`. */
function triedRounds(
  choice: DeltaChoice,
  rounds: number,
  outcome: (round: number) => { hits: number; overflows: number },
): number[] {
  const tried: number[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    if (!choice.mayTry({ chunk: CHUNK, round }, TERMS)) continue;
    tried.push(round);
    const { hits, overflows } = outcome(round);
    choice.learn({ chunk: CHUNK, round }, compared(hits, overflows), TERMS);
  }
  return tried;
}

test("a chunk in which all changes is left alone for a round, then two, four, and no more than 16", () => {
  const tried = triedRounds(new DeltaChoice(), 80, () => ({ hits: 100, overflows: 100 }));
  expect(tried).toEqual([1, 3, 6, 11, 20, 37, 54, 71]);
});

test("one in which some changes is always tried, and so is one of which nothing is known", () => {
  const every = Array.from({ length: 30 }, (_, index) => index + 1);
  for (const outcome of [
    { hits: 100, overflows: 75 },
    { hits: 100, overflows: 0 },
    { hits: 0, overflows: 0 },
    { hits: 7, overflows: 7 },
  ]) {
    expect(triedRounds(new DeltaChoice(), 30, () => outcome)).toEqual(every);
  }
});

test("one good round is enough to be tried again, and the next bad one begins anew", () => {
  const tried = triedRounds(new DeltaChoice(), 12, (round) => ({
    hits: 10,
    overflows: round === 6 ? 0 : 10,
  }));
  expect(tried).toEqual([1, 3, 6, 7, 9, 12]);
});

test("within a round a chunk is all tried, or all left alone", () => {
  const choice = new DeltaChoice();
  for (let piece = 0; piece < 5; piece += 1) {
    expect(choice.mayTry({ chunk: CHUNK, round: 1 }, TERMS)).toBe(true);
    choice.learn({ chunk: CHUNK, round: 1 }, compared(10, 10), TERMS);
  }
  expect(choice.mayTry({ chunk: CHUNK, round: 2 }, TERMS)).toBe(false);
  expect(choice.mayTry({ chunk: CHUNK, round: 3 }, TERMS)).toBe(true);
});

test("chunks are known apart", () => {
  const choice = new DeltaChoice();
  choice.learn({ chunk: 1, round: 1 }, compared(10, 10), TERMS);
  expect(choice.mayTry({ chunk: 1, round: 2 }, TERMS)).toBe(false);
  expect(choice.mayTry({ chunk: 2, round: 2 }, TERMS)).toBe(true);
});

/** A channel and its link, in milliseconds per MiB; a frame is one, and so is a chunk. */
class Channel {
  readonly choice = new DeltaChoice();
  #atMs = 0;

  /** Sends memory without deltas: the thread works for so long, and waits for the link. */
  sendWhole(mebibytes: number, { workMs = 0.5, linkMs = 0 }, { way = "raw", ratio = 1 } = WHOLE) {
    for (let count = 0; count < mebibytes; count += 1) {
      const blockedMs = Math.max(0, linkMs - workMs);
      const elapsedMs = workMs + blockedMs;
      this.#atMs += elapsedMs;
      this.choice.learnFrame({
        ...{ way, pageBytes: MIB, payloadBytes: MIB, wireBytes: MIB * ratio },
        ...{ elapsedMs, blockedMs, atMs: this.#atMs },
      });
    }
  }

  /** Compares `mebibytes` of chunks from `chunk` on, each of which takes `ms`. */
  compare(
    mebibytes: number,
    ms: number,
    { round = 1, chunk = 0, saved = 1, terms = TERMS }: Comparing = {},
  ): void {
    for (let count = 0; count < mebibytes; count += 1) {
      const facts = { hits: 256, overflows: 0, pageBytes: MIB, savedBytes: MIB * saved, ms };
      this.choice.learn({ chunk: chunk + count, round }, facts, terms);
    }
  }

  /** How many of 100 chunks are compared. */
  tried(round: number, { chunk = 0, terms = TERMS } = {}): number {
    const chunks = Array.from({ length: 100 }, (_, index) => chunk + index);
    return chunks.filter((each) => this.choice.mayTry({ chunk: each, round }, terms)).length;
  }
}

interface Comparing {
  readonly round?: number;
  readonly chunk?: number;
  readonly saved?: number;
  readonly terms?: Terms;
}

const WHOLE: { readonly way?: Terms["way"]; readonly ratio?: number } = {};

test("over a link that takes raw memory faster than it is compared, deltas are given up", () => {
  const channel = new Channel();
  channel.sendWhole(32, { workMs: 0.4, linkMs: 0.5 });
  channel.compare(16, 0.8);
  expect(channel.choice.isGivenUp).toBe(true);
  expect(channel.choice.changes).toBe(1);
  // But for the first chunks of each round, which are the same ones however often one asks.
  const scouts = [40, 41].map((chunk) => ({ chunk, round: 2 }));
  for (const asked of [...scouts, ...scouts]) {
    expect(channel.choice.mayTry(asked, TERMS)).toBe(true);
  }
  for (let round = 2; round < 6; round += 1) {
    expect(channel.tried(round)).toBe(2);
    channel.compare(2, 0.8, { round });
  }
  expect(channel.choice.mayTry({ chunk: 0, round: 6 }, TERMS)).toBe(true);
});

test("over a slow link the same deltas are made, and so where raw memory takes the thread as long", () => {
  for (const slow of [
    { workMs: 0.4, linkMs: 8 },
    { workMs: 2, linkMs: 0 },
  ]) {
    const channel = new Channel();
    channel.sendWhole(32, slow);
    channel.compare(16, 0.8);
    expect(channel.choice.isGivenUp).toBe(false);
    expect(channel.tried(2)).toBe(100);
  }
});

test("deltas are weighed against the way that memory goes without them", () => {
  for (const [workMs, way, isGivenUp] of [
    // Compressed to a tenth, memory takes 2 ms of this link, or what the codec takes.
    [0.4, "codec", true],
    [3, "codec", false],
    [0.4, "raw", false],
  ] as const) {
    const channel = new Channel();
    channel.sendWhole(32, { workMs, linkMs: 2 }, { way: "codec", ratio: 0.1 });
    channel.sendWhole(32, { workMs: 0.1, linkMs: 20 });
    channel.compare(16, 2.5, { terms: { ...TERMS, way } });
    expect(channel.choice.isGivenUp, `${way}, ${workMs} ms`).toBe(isGivenUp);
  }
});

test("nothing is given up before enough is known", () => {
  const channel = new Channel();
  channel.compare(100, 50);
  expect(channel.choice.isGivenUp).toBe(false);
  channel.sendWhole(7, { workMs: 0.1 });
  channel.compare(1, 50);
  expect(channel.choice.isGivenUp).toBe(false);
  channel.sendWhole(4, { workMs: 0.1 });
  channel.compare(1, 50);
  expect(channel.choice.isGivenUp).toBe(true);
});

test("what scouts find brings deltas back, and a small difference changes nothing", () => {
  const channel = new Channel();
  channel.sendWhole(64, { workMs: 1 });
  channel.compare(200, 1.05);
  expect(channel.choice.isGivenUp).toBe(false);
  channel.compare(200, 1.3);
  expect(channel.choice.isGivenUp).toBe(true);
  channel.compare(200, 0.95);
  expect(channel.choice.isGivenUp).toBe(true);
  channel.compare(200, 0.8);
  expect(channel.choice.isGivenUp).toBe(false);
  expect(channel.choice.changes).toBe(2);
  expect(channel.tried(2)).toBe(100);
});

test("a link that becomes slow brings them back, and one that becomes fast ends them", () => {
  const channel = new Channel();
  channel.sendWhole(64, { workMs: 0.4, linkMs: 0 });
  channel.compare(16, 0.8);
  expect(channel.choice.isGivenUp).toBe(true);
  channel.sendWhole(64, { workMs: 0.4, linkMs: 80 });
  channel.compare(1, 0.8);
  expect(channel.choice.isGivenUp).toBe(false);
  channel.sendWhole(64, { workMs: 0.4, linkMs: 0 });
  channel.compare(1, 0.8);
  expect(channel.choice.isGivenUp).toBe(true);
});

test("a chunk of which too little is saved is left alone, beside others of which more is", () => {
  const channel = new Channel();
  channel.sendWhole(32, { workMs: 1 });
  channel.compare(50, 0.5, { saved: 0.9 });
  channel.compare(50, 0.5, { saved: 0.2, chunk: 50 });
  expect(channel.choice.isGivenUp).toBe(false);
  expect(channel.tried(2)).toBe(50);
  expect(channel.tried(3)).toBe(100);
  // Over a slow link little is much.
  channel.sendWhole(32, { workMs: 1, linkMs: 80 });
  channel.compare(50, 0.5, { saved: 0.2, chunk: 50, round: 3 });
  expect(channel.tried(4)).toBe(100);
});

test("fewer bytes are worth the time that was allowed for them", () => {
  const terms = { ...TERMS, extraTime: 1 };
  for (const [ms, isGivenUp] of [
    [0.9, false],
    [1.2, true],
  ] as const) {
    const channel = new Channel();
    channel.sendWhole(32, { workMs: 0.5 });
    channel.compare(16, ms, { terms });
    expect(channel.choice.isGivenUp).toBe(isGivenUp);
  }
});

test("while the processor's budget is used up, deltas go on only where they save of its time", () => {
  const terms = { ...TERMS, isSpent: true };
  for (const [saved, tried] of [
    [0.9, 100],
    [0.4, 0],
  ] as const) {
    const channel = new Channel();
    // The link is slow: by time, any delta is worth it.
    channel.sendWhole(32, { workMs: 1, linkMs: 80 });
    channel.compare(16, 0.5, { saved });
    expect(channel.tried(2, { terms })).toBe(tried);
    expect(channel.tried(2)).toBe(100);
  }
});

test("the price of deltas is what comparing takes beyond the work that sending less saves", () => {
  const channel = new Channel();
  const facts = { hits: 256, overflows: 0, pageBytes: MIB, savedBytes: MIB / 2, ms: 0.8 };
  expect(channel.choice.extraWorkMs(facts)).toBe(0.8);
  channel.sendWhole(32, { workMs: 1, linkMs: 80 });
  expect(channel.choice.extraWorkMs(facts)).toBeCloseTo(0.3);
  expect(channel.choice.extraWorkMs({ ...facts, ms: 0.2 })).toBe(0);
});

test("what it tells is what it decides by", () => {
  const channel = new Channel();
  expect(channel.choice.costMs("raw")).toEqual({ comparing: null, whole: null });
  channel.sendWhole(32, { workMs: 1, linkMs: 4 });
  channel.compare(16, 0.5);
  const { comparing, whole } = channel.choice.costMs("raw");
  expect((comparing ?? 0) * MIB).toBeCloseTo(0.5);
  expect((whole ?? 0) * MIB).toBeCloseTo(4);
  // Where a codec is chosen and nothing shrinks, that is what it takes, too.
  expect(channel.choice.costMs("codec").whole).toBe(whole);
  channel.sendWhole(32, { workMs: 9, linkMs: 2 }, { way: "codec" });
  expect((channel.choice.costMs("codec").whole ?? 0) * MIB).toBeCloseTo(9);
});
