import { assert } from "../base/assert.ts";

/** What one round observed. */
export interface RoundFacts {
  /** Guest memory that was looked at and described in this round. */
  readonly guestBytes: number;
  /** What that came to on the wire. */
  readonly sentBytes: number;
  /** Time that a channel spent in sending until all was applied, the mean of all channels. */
  readonly sendMs: number;
  /** From the first page to the last answer that all is applied. */
  readonly elapsedMs: number;
  /** What the answers take when there is nothing to apply; it is within both times above. */
  readonly roundTripMs: number;
  /** Guest memory that is dirty after the round, as far as it is told by logs. */
  readonly dirtyBytes: number;
  readonly deviceBytes: number;
  /** Of memory that is scanned; absent where none is. */
  readonly scan?: ScanFacts;
}

/** What the scan within a round observed. */
export interface ScanFacts {
  /** Guest memory that was read and compared; the last scan must read as much, whatever changed. */
  readonly scannedBytes: number;
  /** Time that a channel spent in that, the mean of all channels; it is within `elapsedMs`. */
  readonly scanMs: number;
  /** Guest memory that was found changed since the scan before; null in the first round. */
  readonly foundBytes: number | null;
}

export interface ConvergenceLimits {
  readonly downtimeLimitMs: number;
  readonly maxRounds: number;
  readonly nonConvergence: "cancel" | "switch-over";
  readonly autoConverge: boolean;
  readonly throttleInitialPercent: number;
  readonly throttleIncrementPercent: number;
  readonly throttleMaxPercent: number;
}

export type Verdict =
  | { readonly kind: "continue"; readonly throttlePercent: number }
  | { readonly kind: "switch-over" }
  | { readonly kind: "give-up" };

export interface Judgement {
  readonly verdict: Verdict;
  readonly expectedDowntimeMs: number;
  readonly dirtyBytesPerSecond: number;
  readonly bytesPerSecond: number;
}

/**
 * How much an older round counts against the next one. Halving remembers some three rounds: one odd
 * round (a stalled link, a round of zero pages) neither starts nor prevents a switchover.
 */
const DECAY = 0.5;

/** Waking threads, pausing, resuming: there however little is left to send. */
const HANDOVER_MS = 5;

/** The last fence, the devices with READY, COMMIT with RUNNING: each waits for an answer. */
const HANDOVER_ROUND_TRIPS = 3;

/**
 * A gigabit: taken for the link of a guest that is nearly all zero, when its devices are larger than
 * anything that was sent. No further round would tell more about it.
 */
const UNPROVEN_BYTES_PER_MS = 125_000;

/** Pages go out no slower than half of what the guest dirties anew, or the round did not help. */
const SHRINKING = 0.5;

/** So many rounds in a row must not shrink before the guest is throttled (further). */
const PATIENCE_ROUNDS = 2;

/**
 * Decides after each round whether the guest can be paused now.
 *
 * Without the round trip, the time of a round has two parts: describing guest memory, in proportion
 * to the memory, and sending, in proportion to the bytes sent. Both rates are filtered over the
 * rounds; what is dirty now is expected to take both, and to shrink by nothing. The device state
 * must be sent as well.
 *
 * What is dirty in memory that is scanned is known only by scanning it. As much as the last scan
 * found is expected: it found what was written during about a round, and the guest cannot write any
 * longer than a round before the last scan meets it. All of it must be read to find that, at the
 * rate of the scans so far, which is time of its own beside describing and sending. Before anything
 * was scanned a second time, nothing is known and the guest is not paused.
 *
 * While zero pages are described, the few bytes that they come to go out beside it, and sending
 * seems to take no time. So a link is believed to be that fast only for as many bytes as it carried
 * in one round of which at least half was sending: it cannot be off by more than two then. For more
 * bytes, it is taken to have needed all the time of the rounds. The next round will tell, for it
 * sends them. It sends no devices, so for those the link is taken to have needed half of that time,
 * which cannot be off by more than two either.
 *
 * Pure: it is told what happened and reads no clock, bitmap or socket. Limits may change between
 * two rounds.
 */
export class Convergence {
  #rounds = 0;
  #guestBytes = 0;
  #sentBytes = 0;
  #sendMs = 0;
  #describeMs = 0;
  /** The most that was sent in one round that was mainly sending. */
  #provenBytes = 0;
  #scannedBytes = 0;
  #scanMs = 0;
  /** What was dirty when the round before had ended, or what it began with, and how long it took. */
  #dirtyBytesBefore: number | null = null;
  #elapsedMsBefore = 0;
  #stubbornRounds = 0;
  #throttlePercent = 0;

  judge(round: RoundFacts, limits: ConvergenceLimits): Judgement {
    assert(round.elapsedMs > 0, "a round takes time");
    assert(round.guestBytes >= 0 && round.sentBytes >= 0, "a round sends no less than nothing");
    this.#rounds += 1;
    this.#remember(round);
    const expectedDowntimeMs = this.#expectedDowntimeMs(round);
    const verdict = this.#verdict(round, limits, expectedDowntimeMs);
    const dirtyBytesPerSecond = this.#dirtyBytesPerSecond(round);
    this.#dirtyBytesBefore = expectedDirtyBytes(round);
    this.#elapsedMsBefore = round.elapsedMs;
    const bytesPerSecond = this.#sendMs === 0 ? 0 : (this.#sentBytes / this.#sendMs) * 1000;
    return { verdict, expectedDowntimeMs, dirtyBytesPerSecond, bytesPerSecond };
  }

  /** A page is scanned about once in a round: from the middle of one to that of the next. */
  #dirtyBytesPerSecond({ dirtyBytes, elapsedMs, scan }: RoundFacts): number {
    const logged = dirtyBytes / elapsedMs;
    const found = (scan?.foundBytes ?? 0) / ((this.#elapsedMsBefore + elapsedMs) / 2);
    return (logged + found) * 1000;
  }

  #remember(round: RoundFacts): void {
    const workMs = Math.max(0, round.elapsedMs - round.roundTripMs);
    const sendMs = Math.min(Math.max(0, round.sendMs - round.roundTripMs), workMs);
    if (2 * sendMs >= workMs) this.#provenBytes = Math.max(this.#provenBytes, round.sentBytes);
    this.#guestBytes = this.#guestBytes * DECAY + round.guestBytes;
    this.#sentBytes = this.#sentBytes * DECAY + round.sentBytes;
    this.#sendMs = this.#sendMs * DECAY + sendMs;
    const scanMs = Math.min(round.scan?.scanMs ?? 0, workMs - sendMs);
    this.#scannedBytes = this.#scannedBytes * DECAY + (round.scan?.scannedBytes ?? 0);
    this.#scanMs = this.#scanMs * DECAY + scanMs;
    this.#describeMs = this.#describeMs * DECAY + (workMs - sendMs - scanMs);
  }

  #expectedDowntimeMs(round: RoundFacts): number {
    const { deviceBytes, roundTripMs, scan } = round;
    const dirtyBytes = expectedDirtyBytes(round);
    const scannedBytes = scan?.scannedBytes ?? 0;
    const scanMs = scannedBytes === 0 ? 0 : (scannedBytes * this.#scanMs) / this.#scannedBytes;
    const describeMs = dirtyBytes === 0 ? 0 : (dirtyBytes * this.#describeMs) / this.#guestBytes;
    const sendMs = this.#expectedSendMs(dirtyBytes, deviceBytes);
    return scanMs + describeMs + sendMs + HANDOVER_MS + HANDOVER_ROUND_TRIPS * roundTripMs;
  }

  #expectedSendMs(dirtyBytes: number, deviceBytes: number): number {
    if (dirtyBytes + deviceBytes === 0) return 0;
    const sendMs = this.#sendMs / this.#sentBytes;
    if (dirtyBytes + deviceBytes <= this.#provenBytes) return (dirtyBytes + deviceBytes) * sendMs;
    const cautiousMs = (this.#sendMs + this.#describeMs) / this.#sentBytes;
    const dirtyMs = dirtyBytes <= this.#provenBytes ? sendMs : cautiousMs;
    const deviceMs = Math.max(sendMs, Math.min(cautiousMs / 2, 1 / UNPROVEN_BYTES_PER_MS));
    return dirtyBytes * dirtyMs + deviceBytes * deviceMs;
  }

  #verdict(round: RoundFacts, limits: ConvergenceLimits, expectedDowntimeMs: number): Verdict {
    // A comparison with NaN (nothing was ever sent, yet something is dirty) must not switch over.
    const isKnown = round.scan?.foundBytes !== null;
    if (isKnown && expectedDowntimeMs <= limits.downtimeLimitMs) return { kind: "switch-over" };
    if (this.#rounds >= limits.maxRounds) {
      return { kind: limits.nonConvergence === "cancel" ? "give-up" : "switch-over" };
    }
    return { kind: "continue", throttlePercent: this.#throttle(round, limits) };
  }

  #throttle(round: RoundFacts, limits: ConvergenceLimits): number {
    if (!limits.autoConverge) {
      // Who sets it again begins anew.
      this.#throttlePercent = 0;
      this.#stubbornRounds = 0;
      return 0;
    }
    const before = this.#dirtyBytesBefore ?? round.guestBytes;
    const isStubborn = expectedDirtyBytes(round) > before * SHRINKING;
    this.#stubbornRounds = isStubborn ? this.#stubbornRounds + 1 : 0;
    if (this.#stubbornRounds < PATIENCE_ROUNDS) return this.#throttlePercent;
    this.#stubbornRounds = 0;
    const next =
      this.#throttlePercent === 0
        ? limits.throttleInitialPercent
        : this.#throttlePercent + limits.throttleIncrementPercent;
    this.#throttlePercent = Math.min(next, limits.throttleMaxPercent);
    return this.#throttlePercent;
  }
}

/** What must be sent while the guest is paused; before a second scan, the most it can be. */
function expectedDirtyBytes({ dirtyBytes, scan }: RoundFacts): number {
  return dirtyBytes + (scan === undefined ? 0 : (scan.foundBytes ?? scan.scannedBytes));
}
