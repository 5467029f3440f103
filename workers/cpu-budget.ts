/** What may be spent before any time has gone by, so that a start is not all waiting. */
const BURST_MS = 20;

/**
 * Keeps the processor time of compression within a share of one core. What was not used is not
 * saved up. Pure: it is told what time it is.
 */
export class CpuBudget {
  #spentMs = 0;
  #atMs = 0;

  /** Whether more may be spent now. `share` is of one core; 0 is "no limit". */
  allows(share: number, nowMs: number): boolean {
    const isLimited = share > 0;
    // What was spent while there was no limit is not held against a limit that comes later.
    const paidMs = isLimited ? (nowMs - this.#atMs) * share : Number.POSITIVE_INFINITY;
    this.#spentMs = Math.max(0, this.#spentMs - paidMs);
    this.#atMs = nowMs;
    return this.#spentMs < BURST_MS;
  }

  spend(ms: number): void {
    this.#spentMs += ms;
  }
}
