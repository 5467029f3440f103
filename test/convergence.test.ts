import { expect, test } from "vitest";
import { InvariantError } from "../base/assert.ts";
import { GIB, KIB, MIB } from "../base/units.ts";
import { Convergence, type ConvergenceLimits, type RoundFacts } from "../engine/convergence.ts";
import { LIMITS, ORDINARY, SimulatedMigration, type World } from "./harness/simulated-migration.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** A round over a link of 1 MB/ms that sends 100 MB, after which a tenth is dirty. */
const ROUND: RoundFacts = {
  guestBytes: 100e6,
  sentBytes: 100e6,
  sendMs: 100,
  elapsedMs: 100,
  roundTripMs: 0,
  dirtyBytes: 10e6,
  deviceBytes: 0,
};

function simulate(world: Partial<World>, limits: Partial<ConvergenceLimits> = {}) {
  return new SimulatedMigration({ ...ORDINARY, ...world }, { ...LIMITS, ...limits });
}

function kindsOf(rounds: readonly Partial<RoundFacts>[], limits: Partial<ConvergenceLimits>) {
  const policy = new Convergence();
  return rounds.map(
    (round) => policy.judge({ ...ROUND, ...round }, { ...LIMITS, ...limits }).verdict.kind,
  );
}

test("an idle guest is switched over after one round", () => {
  expect(simulate({ writeBytesPerMs: 0 }).run()).toMatchObject({ kind: "switch-over", rounds: 1 });
});

test("what the pause will be is expected closely, over slow and fast links", () => {
  for (const linkBytesPerMs of [1e4, 1e5, 1e6]) {
    const ending = simulate({ linkBytesPerMs, writeBytesPerMs: linkBytesPerMs / 20 }).run();
    expect(ending.kind).toBe("switch-over");
    expect(ending.judgement.expectedDowntimeMs / ending.pauseMs).toBeGreaterThan(0.8);
    // Some milliseconds are added for what does not depend on the memory.
    expect(ending.judgement.expectedDowntimeMs - 10).toBeLessThan(ending.pauseMs * 1.2);
  }
});

test("the pause fits a limit of any size", () => {
  for (const downtimeLimitMs of [20, 100, 1000, 10_000]) {
    const { kind, pauseMs } = simulate({ writeBytesPerMs: 300_000 }, { downtimeLimitMs }).run();
    expect(kind).toBe("switch-over");
    expect(pauseMs).toBeLessThan(downtimeLimitMs);
  }
});

test("a guest that writes faster than the link carries is given up after max-rounds", () => {
  const fast = { writeBytesPerMs: 3e6, workingSetBytes: GIB };
  for (const maxRounds of [1, 2, 7]) {
    const ending = simulate(fast, { maxRounds }).run();
    expect(ending).toMatchObject({ kind: "give-up", rounds: maxRounds });
    expect(ending.judgement.expectedDowntimeMs).toBeGreaterThan(LIMITS.downtimeLimitMs);
    const wanted = simulate(fast, { maxRounds, nonConvergence: "switch-over" }).run();
    expect(wanted).toMatchObject({ kind: "switch-over", rounds: maxRounds });
  }
});

test("a first round of zero pages says nothing about how fast the link is", () => {
  // Almost nothing is sent while eight gigabytes are looked at, and the guest writes megabytes.
  const world = { guestBytes: 8 * GIB, zeroShare: 0.9999, linkBytesPerMs: 12_000 };
  const simulated = simulate({ ...world, writeBytesPerMs: 40_000, workingSetBytes: 40 * MIB });
  const first = simulated.round();
  expect(simulated.pauseMs()).toBeGreaterThan(3000);
  expect(first.verdict.kind).toBe("continue");
  expect(simulated.run().kind).toBe("give-up");
});

test("a guest of zero pages moves as soon as what it writes was sent once", () => {
  const zeros = { guestBytes: 8 * GIB, zeroShare: 1, workingSetBytes: 20 * MIB };
  const ending = simulate(zeros).run();
  expect(ending.kind).toBe("switch-over");
  expect(ending.rounds).toBeLessThanOrEqual(2);
});

test("an idle guest of zero pages moves with devices larger than all it sent", () => {
  const ending = simulate({ zeroShare: 1, writeBytesPerMs: 0, deviceBytes: 1 * MIB }).run();
  expect(ending).toMatchObject({ kind: "switch-over", rounds: 1 });
});

test("a round of zero pages in between does not start a switchover", () => {
  // 500 MB are dirty after every round, of which a link of 1 MB/ms carries 300 in time.
  const raw = { guestBytes: 500e6, sentBytes: 500e6, sendMs: 500, elapsedMs: 560 };
  const zeros = { guestBytes: 500e6, sentBytes: 42e3, sendMs: 5, elapsedMs: 65 };
  const rounds = [raw, raw, zeros, raw, zeros, raw].map((round) => ({
    ...round,
    dirtyBytes: 500e6,
  }));
  expect(new Set(kindsOf(rounds, {}))).toEqual(new Set(["continue"]));
});

test("a round on a link that stalls neither starts a switchover nor prevents it for long", () => {
  const world = { writeBytesPerMs: 300_000, workingSetBytes: 350 * MIB };
  const steady = simulate(world).run();
  expect(steady.kind).toBe("switch-over");

  const stalled = simulate(world);
  stalled.change({ linkBytesPerMs: ORDINARY.linkBytesPerMs / 100 });
  expect(stalled.round().verdict.kind).toBe("continue");
  stalled.change({ linkBytesPerMs: ORDINARY.linkBytesPerMs });
  const ending = stalled.run();
  expect(ending.kind).toBe("switch-over");
  expect(ending.pauseMs).toBeLessThan(LIMITS.downtimeLimitMs);
});

test("a link that becomes slower is noticed after one round", () => {
  const simulated = simulate({ writeBytesPerMs: 900_000, workingSetBytes: 400 * MIB });
  expect(simulated.round().verdict.kind).toBe("continue");
  simulated.change({ linkBytesPerMs: ORDINARY.linkBytesPerMs / 10 });
  const before = simulated.round();
  expect(before.verdict.kind).toBe("continue");
  expect(before.expectedDowntimeMs / simulated.pauseMs()).toBeGreaterThan(0.5);
});

test("device state is part of the pause", () => {
  const world = { writeBytesPerMs: 10, linkBytesPerMs: 100_000 };
  expect(simulate({ ...world, deviceBytes: 10e6 }).run().kind).toBe("switch-over");
  const large = simulate({ ...world, deviceBytes: 60e6 }).run();
  expect(large.kind).toBe("give-up");
  expect(large.judgement.expectedDowntimeMs).toBeGreaterThan(500);
});

test("so are the round trips of the last stage, and they are no part of the bandwidth", () => {
  expect(simulate({ writeBytesPerMs: 10, roundTripMs: 50 }).run().kind).toBe("switch-over");
  expect(simulate({ writeBytesPerMs: 10, roundTripMs: 200 }).run().kind).toBe("give-up");
  const policy = new Convergence();
  const far = { ...ROUND, sendMs: 150, elapsedMs: 150, roundTripMs: 50 };
  expect(policy.judge(far, LIMITS).bytesPerSecond).toBe(1e9);
});

test("limits that change hold from the next round on", () => {
  const simulated = simulate({ writeBytesPerMs: 900_000, workingSetBytes: 600 * MIB });
  for (let round = 0; round < 5; round += 1) {
    expect(simulated.round().verdict.kind).toBe("continue");
  }
  simulated.change({}, { downtimeLimitMs: 2000 });
  expect(simulated.round().verdict.kind).toBe("switch-over");

  const impatient = simulate({ writeBytesPerMs: 900_000, workingSetBytes: 600 * MIB });
  for (let round = 0; round < 5; round += 1) impatient.round();
  impatient.change({}, { maxRounds: 3 });
  expect(impatient.round().verdict.kind).toBe("give-up");
  impatient.change({}, { nonConvergence: "switch-over" });
  expect(impatient.round().verdict.kind).toBe("switch-over");
});

const THROTTLE = {
  autoConverge: true,
  throttleInitialPercent: 20,
  throttleIncrementPercent: 30,
  throttleMaxPercent: 90,
};

/** The throttle after each round, where all that was sent is dirty again in this share. */
function throttlesOf(shares: readonly number[], limits: Partial<ConvergenceLimits>): number[] {
  const policy = new Convergence();
  return shares.map((share) => {
    const round = { ...ROUND, dirtyBytes: ROUND.guestBytes * share };
    const { verdict } = policy.judge(round, { ...LIMITS, downtimeLimitMs: 1, ...limits });
    return verdict.kind === "continue" ? verdict.throttlePercent : -1;
  });
}

test("a guest is throttled step by step while pairs of rounds do not shrink", () => {
  expect(throttlesOf(Array(10).fill(0.9), THROTTLE)).toEqual([
    0, 20, 20, 50, 50, 80, 80, 90, 90, 90,
  ]);
});

test("rounds that shrink keep the throttle where it is", () => {
  const shares = [0.9, 0.9, 0.4, 0.9, 0.4, 0.9, 0.9];
  expect(throttlesOf(shares, THROTTLE)).toEqual([0, 20, 20, 20, 20, 20, 50]);
});

test("nobody is throttled without auto-converge, however hopeless", () => {
  expect(throttlesOf(Array(6).fill(1), {})).toEqual([0, 0, 0, 0, 0, 0]);
});

test("a guest that is throttled converges in the end", () => {
  const fast = { writeBytesPerMs: 3e6, workingSetBytes: GIB };
  expect(simulate(fast).run().kind).toBe("give-up");
  const simulated = simulate(fast, { ...LIMITS, autoConverge: true });
  const ending = simulated.run();
  expect(ending.kind).toBe("switch-over");
  expect(ending.pauseMs).toBeLessThan(LIMITS.downtimeLimitMs);
  expect(simulated.throttlePercent).toBeGreaterThan(60);
});

test("a throttle is lifted when auto-converge is switched off", () => {
  const simulated = simulate(
    { writeBytesPerMs: 3e6, workingSetBytes: GIB },
    { autoConverge: true },
  );
  while (simulated.throttlePercent === 0) simulated.round();
  simulated.change({}, { autoConverge: false });
  expect(simulated.round().verdict).toEqual({ kind: "continue", throttlePercent: 0 });
});

test("a throttle that was lifted begins anew when auto-converge is switched on again", () => {
  const policy = new Convergence();
  const throttleAt = (autoConverge: boolean): number => {
    const round = { ...ROUND, dirtyBytes: ROUND.guestBytes };
    const limits = { ...LIMITS, ...THROTTLE, downtimeLimitMs: 1, autoConverge };
    const { verdict } = policy.judge(round, limits);
    return verdict.kind === "continue" ? verdict.throttlePercent : -1;
  };
  const settings = [true, true, true, true, false, true, true, true];
  expect(settings.map(throttleAt)).toEqual([0, 20, 20, 50, 0, 0, 20, 20]);
});

test("rounds that sent nothing decide nothing by accident", () => {
  const nothing = { guestBytes: 0, sentBytes: 0, sendMs: 0, elapsedMs: 0.001 };
  // Something is dirty and nobody knows how long it would take.
  expect(kindsOf([{ ...nothing, dirtyBytes: 4 * KIB }], {})).toEqual(["continue"]);
  expect(kindsOf([{ ...nothing, deviceBytes: 1 }], {})).not.toEqual(["give-up"]);
  expect(kindsOf([{ ...nothing, dirtyBytes: 0 }], {})).toEqual(["switch-over"]);
});

test("facts that cannot be are a bug of the engine", () => {
  for (const impossible of [{ elapsedMs: 0 }, { guestBytes: -1 }, { sentBytes: -1 }]) {
    expect(() => kindsOf([impossible], {})).toThrow(InvariantError);
  }
});

/** Evenly on a scale where each factor is as likely as any other. */
function between(random: Prng, least: number, most: number): number {
  return least * (most / least) ** (random.below(2 ** 30) / 2 ** 30);
}

function randomWorld(random: Prng): World {
  const guestBytes = Math.ceil(between(random, 16 * MIB, 2 * GIB) / (4 * KIB)) * 4 * KIB;
  const zeroShare =
    random.below(2) === 0 ? random.below(1000) / 1000 : 1 - between(random, 1e-4, 1);
  return {
    ...ORDINARY,
    guestBytes,
    zeroShare,
    writeBytesPerMs: between(random, 1, 4e6),
    workingSetBytes: Math.ceil(guestBytes * between(random, 0.001, 1)),
    linkBytesPerMs: between(random, 1000, 5e6),
    roundTripMs: between(random, 0.05, 80),
    bufferBytes: between(random, 64 * KIB, 16 * MIB),
    // Where next to nothing is sent before them, how long devices take is a guess.
    deviceBytes: zeroShare < 0.8 ? random.below(Math.ceil(guestBytes / 20)) : 0,
  };
}

test(`in constant worlds of all kinds, pauses are at most twice the limit (SEED=${seed})`, () => {
  const random = new Prng(seed);
  for (let run = 0; run < 300; run += 1) {
    const world = randomWorld(random);
    const downtimeLimitMs = between(random, 50, 2000);
    const ending = simulate(world, { downtimeLimitMs }).run();
    const told = JSON.stringify({ run, downtimeLimitMs, world, ending });
    if (ending.kind === "switch-over") {
      expect(ending.pauseMs, told).toBeLessThan(2 * downtimeLimitMs);
    } else {
      expect(ending.rounds, told).toBe(LIMITS.maxRounds);
      expect(2 * ending.pauseMs, told).toBeGreaterThan(downtimeLimitMs);
    }
  }
});

/** 8 GB that are scanned at 10 GB/s; a tenth of a percent was found changed. */
const SCANNED: RoundFacts = {
  ...ROUND,
  guestBytes: 8e6,
  sentBytes: 8e6,
  sendMs: 8,
  elapsedMs: 810,
  dirtyBytes: 0,
  scan: { scannedBytes: 8e9, scanMs: 800, foundBytes: 8e6 },
};

/** The first round, which sends what it scans. */
const SCANNED_FIRST: RoundFacts = {
  ...SCANNED,
  guestBytes: 8e9,
  sentBytes: 8e9,
  sendMs: 8000,
  elapsedMs: 8800,
  scan: { scannedBytes: 8e9, scanMs: 800, foundBytes: null },
};

/** The same of a guest a thousand times smaller. */
const TINY_FIRST: RoundFacts = {
  ...SCANNED_FIRST,
  guestBytes: 8e6,
  sentBytes: 8e6,
  sendMs: 8,
  elapsedMs: 9,
  scan: { scannedBytes: 8e6, scanMs: 1, foundBytes: null },
};

test("memory that is scanned must be looked at twice before the guest rests, however small", () => {
  expect(kindsOf([TINY_FIRST], {})).toEqual(["continue"]);
  expect(kindsOf([TINY_FIRST], { maxRounds: 1 })).toEqual(["give-up"]);
  const second = { ...TINY_FIRST, scan: { scannedBytes: 8e6, scanMs: 1, foundBytes: 4096 } };
  expect(kindsOf([TINY_FIRST, second], {})).toEqual(["continue", "switch-over"]);
});

test("the pause is expected to read all memory once more, whatever has changed", () => {
  const policy = new Convergence();
  policy.judge(SCANNED_FIRST, LIMITS);
  const { expectedDowntimeMs, verdict } = policy.judge(SCANNED, LIMITS);
  expect(expectedDowntimeMs).toBeGreaterThan(800 + 8);
  expect(expectedDowntimeMs).toBeLessThan(800 + 8 + 15);
  expect(verdict.kind).toBe("continue");
  const rounds = [SCANNED_FIRST, SCANNED];
  expect(kindsOf(rounds, { downtimeLimitMs: 900 })).toEqual(["continue", "switch-over"]);
});

test("a scan of memory that nobody uses takes no time, and promises none", () => {
  const policy = new Convergence();
  const scan = { scannedBytes: 0, scanMs: 0 };
  policy.judge({ ...TINY_FIRST, scan: { ...scan, foundBytes: null } }, LIMITS);
  const idle = { guestBytes: 0, sentBytes: 50, sendMs: 0.1, elapsedMs: 0.2 };
  const judged = policy.judge(
    { ...ROUND, ...idle, dirtyBytes: 0, scan: { ...scan, foundBytes: 0 } },
    LIMITS,
  );
  expect(judged.verdict.kind).toBe("switch-over");
  expect(judged.expectedDowntimeMs).toBeLessThan(10);
  expect(judged.dirtyBytesPerSecond).toBe(0);
});

test("as much as the last scan found is expected again, over the time since the one before", () => {
  const policy = new Convergence();
  policy.judge(SCANNED_FIRST, LIMITS);
  const found = { ...SCANNED, scan: { scannedBytes: 8e9, scanMs: 800, foundBytes: 400e6 } };
  const judged = policy.judge(found, LIMITS);
  // From the middle of a round of 8800 ms to that of one of 810 ms.
  expect(judged.dirtyBytesPerSecond).toBeCloseTo(400e6 / 4.805, 0);
  expect(judged.expectedDowntimeMs).toBeGreaterThan(800 + 400);
});

test("a guest is throttled when scans keep finding as much, not while they find less", () => {
  const finding = (foundBytes: number): RoundFacts => ({
    ...SCANNED,
    guestBytes: foundBytes,
    scan: { scannedBytes: 8e9, scanMs: 800, foundBytes },
  });
  const throttles = (found: readonly number[]): number[] => {
    const policy = new Convergence();
    return [SCANNED_FIRST, ...found.map(finding)].map((round) => {
      const { verdict } = policy.judge(round, { ...LIMITS, autoConverge: true });
      return verdict.kind === "continue" ? verdict.throttlePercent : Number.NaN;
    });
  };
  expect(throttles([900e6, 900e6, 900e6, 900e6])).toEqual([0, 0, 0, 20, 20]);
  expect(throttles([900e6, 400e6, 190e6, 90e6])).toEqual([0, 0, 0, 0, 0]);
});
