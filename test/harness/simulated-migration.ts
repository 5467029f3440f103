import { KIB } from "../../base/units.ts";
import {
  Convergence,
  type ConvergenceLimits,
  type Judgement,
  type RoundFacts,
} from "../../engine/convergence.ts";

/** A guest and a link as a migration meets them; rates are per millisecond. */
export interface World {
  readonly guestBytes: number;
  /** Of all memory, and of what the guest writes: how much of it is zero. */
  readonly zeroShare: number;
  readonly dirtyZeroShare: number;
  /** The guest writes so fast, over so much of its memory: what is dirty is dirty once. */
  readonly writeBytesPerMs: number;
  readonly workingSetBytes: number;
  readonly linkBytesPerMs: number;
  readonly roundTripMs: number;
  /** What the operating systems on the way take without having delivered it. */
  readonly bufferBytes: number;
  /** Reading and scanning memory, and writing it to a socket. */
  readonly scanBytesPerMs: number;
  readonly writeCallBytesPerMs: number;
  readonly deviceBytes: number;
}

export const ORDINARY: World = {
  guestBytes: 1024 ** 3,
  zeroShare: 0.3,
  dirtyZeroShare: 0,
  writeBytesPerMs: 50_000,
  workingSetBytes: 200 * 1024 ** 2,
  linkBytesPerMs: 1_000_000,
  roundTripMs: 0.2,
  bufferBytes: 4 * 1024 ** 2,
  scanBytesPerMs: 8_000_000,
  writeCallBytesPerMs: 4_000_000,
  deviceBytes: 0,
};

export const LIMITS: ConvergenceLimits = {
  downtimeLimitMs: 300,
  maxRounds: 30,
  nonConvergence: "cancel",
  autoConverge: false,
  throttleInitialPercent: 20,
  throttleIncrementPercent: 10,
  throttleMaxPercent: 99,
};

export interface Ending {
  readonly kind: "switch-over" | "give-up";
  readonly rounds: number;
  /** What the pause would have been, were it begun after the last round. */
  readonly pauseMs: number;
  readonly judgement: Judgement;
}

const PIECE_BYTES = 512 * KIB;
/** A header and a run. */
const FRAME_BYTES = 44;
const FRAME_MS = 0.005;
const PAUSE_STEPS_MS = 1;

/**
 * A migration without memory, threads, sockets and a clock: one channel that reads, scans and
 * writes piece by piece into a buffer that the link empties, while the guest makes dirty. It tells
 * the policy what the engine would tell it.
 */
export class SimulatedMigration {
  readonly #convergence = new Convergence();
  #world: World;
  #limits: ConvergenceLimits;
  #nowMs = 0;
  #queueBytes = 0;
  #queueAtMs = 0;
  #dirtyBytes: number;
  #throttlePercent = 0;
  rounds = 0;

  constructor(world: World, limits: ConvergenceLimits = LIMITS) {
    this.#world = world;
    this.#limits = limits;
    this.#dirtyBytes = world.guestBytes;
  }

  /** From the next round on. */
  change(world: Partial<World>, limits: Partial<ConvergenceLimits> = {}): void {
    this.#world = { ...this.#world, ...world };
    this.#limits = { ...this.#limits, ...limits };
  }

  get throttlePercent(): number {
    return this.#throttlePercent;
  }

  /** Runs rounds until the policy wants no more. */
  run(): Ending {
    for (;;) {
      const judgement = this.round();
      const { kind } = judgement.verdict;
      if (kind !== "continue") {
        return { kind, rounds: this.rounds, pauseMs: this.pauseMs(), judgement };
      }
    }
  }

  round(): Judgement {
    const isFirst = this.rounds === 0;
    const guestBytes = this.#dirtyBytes;
    const sent = this.#send(
      guestBytes,
      isFirst ? this.#world.zeroShare : this.#world.dirtyZeroShare,
    );
    this.rounds += 1;
    this.#dirtyBytes = this.#dirtiedIn(sent.elapsedMs);
    const facts: RoundFacts = {
      guestBytes,
      ...sent,
      dirtyBytes: this.#dirtyBytes,
      deviceBytes: this.#world.deviceBytes,
    };
    const judgement = this.#convergence.judge(facts, this.#limits);
    if (judgement.verdict.kind === "continue") {
      this.#throttlePercent = judgement.verdict.throttlePercent;
    }
    return judgement;
  }

  /** How long the guest would rest if it were paused now. */
  pauseMs(): number {
    const { deviceBytes, linkBytesPerMs, roundTripMs, dirtyZeroShare } = this.#world;
    const { elapsedMs } = this.#send(this.#dirtyBytes, dirtyZeroShare);
    return elapsedMs + deviceBytes / linkBytesPerMs + 2 * roundTripMs + PAUSE_STEPS_MS;
  }

  #dirtiedIn(elapsedMs: number): number {
    const { writeBytesPerMs, workingSetBytes } = this.#world;
    const share = 1 - this.#throttlePercent / 100;
    return Math.floor(Math.min(workingSetBytes, writeBytesPerMs * share * elapsedMs) / 4096) * 4096;
  }

  /** Sends memory, to the answer of the fence behind it. */
  #send(
    guestBytes: number,
    zeroShare: number,
  ): Pick<RoundFacts, "sentBytes" | "sendMs" | "elapsedMs" | "roundTripMs"> {
    const { scanBytesPerMs, writeCallBytesPerMs, linkBytesPerMs, bufferBytes } = this.#world;
    const startMs = this.#nowMs;
    let sentBytes = 0;
    let sendMs = 0;
    for (let at = 0; at < guestBytes; at += PIECE_BYTES) {
      const piece = Math.min(PIECE_BYTES, guestBytes - at);
      this.#nowMs += piece / scanBytesPerMs;
      const bytes = FRAME_BYTES + piece * (1 - zeroShare);
      const writeAtMs = this.#nowMs;
      this.#nowMs += FRAME_MS + bytes / writeCallBytesPerMs;
      this.#drain();
      this.#queueBytes += bytes;
      // What does not fit is written when the link has made room for it.
      this.#nowMs += Math.max(0, this.#queueBytes - bufferBytes) / linkBytesPerMs;
      this.#drain();
      sentBytes += bytes;
      sendMs += this.#nowMs - writeAtMs;
    }
    const fencedMs = this.#queueBytes / linkBytesPerMs + this.#world.roundTripMs;
    this.#nowMs += fencedMs;
    this.#drain();
    const { roundTripMs } = this.#world;
    return {
      sentBytes,
      sendMs: sendMs + fencedMs,
      elapsedMs: this.#nowMs - startMs,
      roundTripMs,
    };
  }

  #drain(): void {
    const drained = (this.#nowMs - this.#queueAtMs) * this.#world.linkBytesPerMs;
    this.#queueBytes = Math.max(0, this.#queueBytes - drained);
    this.#queueAtMs = this.#nowMs;
  }
}
