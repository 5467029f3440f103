import type { Way } from "./choice.ts";
import type { Memory } from "./compressor.ts";
import { RecentMean, SendingCost, type SendingMs, type SentFrame } from "./sending-cost.ts";

/** Rounds for which a chunk without gain is left alone; doubles each time. */
const ROUNDS_MAX = 16;

/** Of pages that a version was known of: with more that changed too much, deltas are no gain. */
const OVERFLOW_SHARE = 0.75;

/** Fewer pages than this say little of their chunk. */
const PAGES_MIN = 8;

/** What is chosen must be worse by this to be given up, and better by this to be taken up again. */
const MARGIN = 1.1;

/** Chunks per round that are compared all the same while deltas are given up, to know when to go back. */
const SCOUTS = 2;

/** How pages go that are no deltas, and what counts. */
export interface Terms {
  readonly way: Way;
  /** The processor time that `auto` may take is used up for now. */
  readonly isSpent: boolean;
  /** How much longer fewer bytes may take, of 1. */
  readonly extraTime: number;
}

/** What it came to to compare pages with their versions. */
export interface Compared {
  /** Pages of which a version was known, and those of them that changed too much for a delta. */
  readonly hits: number;
  readonly overflows: number;
  /** Of the pages that are not zero; and by how much less was left to send of them. */
  readonly pageBytes: number;
  readonly savedBytes: number;
  /** Looking versions up, comparing, making deltas, remembering. */
  readonly ms: number;
}

/**
 * Chooses for `auto`, chunk by chunk, whether pages are compared with the versions that were sent of
 * them. With deltas, a byte of memory takes the comparing, and then the sending of what is left of
 * it; without them, the sending of all of it. Either is as fast as the slower of thread and link.
 *
 * - Where even a delta of nothing would take longer, as over a link that takes raw memory faster than
 *   a thread compares it, deltas are given up but for a few chunks, which tell when that changes.
 * - Else a chunk is left alone of which too little is saved: for a round, then two, four. So is one
 *   in which most pages changed too much for a delta: these would keep others out of the cache.
 * - While the processor's budget is used up, deltas go on only if they save more of its time than
 *   they take.
 *
 * Pure: what it knows is what it is told.
 */
export class DeltaChoice {
  readonly #chunks = new Map<number, { round: number; rounds: number }>();
  readonly #sending = new SendingCost();
  readonly #comparing = new RecentMean();
  readonly #saved = new RecentMean();
  readonly #scouts = new Set<number>();
  #scoutsRound = -1;
  #isGivenUp = false;
  #changes = 0;

  /** Whether even the best delta was found to take longer than it saves. */
  get isGivenUp(): boolean {
    return this.#isGivenUp;
  }

  /** How often that has changed. */
  get changes(): number {
    return this.#changes;
  }

  /** Milliseconds per byte: of comparing, and of sending `way` without; null while not known. */
  costMs(way: Way): { readonly comparing: number | null; readonly whole: number | null } {
    const whole = this.#wholeMs(way);
    return {
      comparing: this.#comparing.perByte,
      whole: whole === null ? null : Math.max(whole.workMs, whole.linkMs),
    };
  }

  mayTry({ chunk, round }: Memory, { isSpent }: Terms): boolean {
    const known = this.#chunks.get(chunk);
    const isAlone =
      known !== undefined && round > known.round && round <= known.round + known.rounds;
    if (isAlone || (isSpent && this.#isHardWork())) return false;
    return !this.#isGivenUp || this.#isScout(chunk, round);
  }

  /** A frame has gone, of whatever pages. */
  learnFrame(frame: SentFrame): void {
    this.#sending.learn(frame);
  }

  /** Pages of a chunk were compared. */
  learn({ chunk, round }: Memory, compared: Compared, terms: Terms): void {
    const { hits, overflows, pageBytes, savedBytes, ms } = compared;
    if (hits < PAGES_MIN || pageBytes === 0) return;
    this.#comparing.add(ms, pageBytes);
    this.#saved.add(savedBytes, pageBytes);
    this.#judge(terms);
    // Scouts go on: what they find is of no use for their own chunks.
    const isDear = !this.#isGivenUp && this.#relative(savedBytes / pageBytes, terms) > MARGIN;
    if (!isDear && overflows <= hits * OVERFLOW_SHARE) {
      this.#chunks.delete(chunk);
      return;
    }
    const known = this.#chunks.get(chunk);
    if (known?.round === round) return;
    const rounds = Math.min((known?.rounds ?? 0) * 2 || 1, ROUNDS_MAX);
    this.#chunks.set(chunk, { round, rounds });
  }

  /** Of what comparing took, what is not made up for by sending less: that is the price of deltas. */
  extraWorkMs({ ms, savedBytes }: Compared): number {
    return Math.max(0, ms - savedBytes * (this.#sending.of("raw")?.workMs ?? 0));
  }

  #judge(terms: Terms): void {
    const best = this.#relative(1, terms);
    const isGivenUp = this.#isGivenUp ? best > 1 / MARGIN : best > MARGIN;
    if (isGivenUp === this.#isGivenUp) return;
    this.#isGivenUp = isGivenUp;
    this.#changes += 1;
  }

  /** What pages take with deltas that save so much of them, of 1, by what they take without. */
  #relative(saved: number, { way, extraTime }: Terms): number {
    const whole = this.#wholeMs(way);
    const comparing = this.#comparing.perByte;
    if (whole === null || comparing === null) return 0; // Not known to be worse.
    const { workMs, linkMs } = whole;
    const left = 1 - saved;
    const withDeltas = Math.max(comparing + left * workMs, left * linkMs);
    return withDeltas / (Math.max(workMs, linkMs, Number.MIN_VALUE) * (1 + extraTime));
  }

  /** What does not shrink goes raw all the same. */
  #wholeMs(way: Way): SendingMs | null {
    return this.#sending.of(way) ?? this.#sending.of("raw");
  }

  /** Whether deltas take more of the processor than sending pages as they are. */
  #isHardWork(): boolean {
    const raw = this.#sending.of("raw");
    const [comparing, saved] = [this.#comparing.perByte, this.#saved.perByte];
    if (raw === null || comparing === null || saved === null) return false;
    return comparing > saved * raw.workMs;
  }

  /** The first chunks of a round: where a guest writes all the time, these are the same ones. */
  #isScout(chunk: number, round: number): boolean {
    if (round !== this.#scoutsRound) this.#scouts.clear();
    this.#scoutsRound = round;
    if (this.#scouts.size < SCOUTS) this.#scouts.add(chunk);
    return this.#scouts.has(chunk);
  }
}
