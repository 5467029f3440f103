/** What a counter grows by per second, between two looks at it. */
export class Throughput {
  #value = 0;
  #atMs = 0;

  /** The growth per second since the last look; 0 at the first. */
  look(value: number, nowMs: number): number {
    const elapsedMs = nowMs - this.#atMs;
    const grown = value - this.#value;
    const isFirst = this.#atMs === 0;
    this.#value = value;
    this.#atMs = nowMs;
    return isFirst || elapsedMs <= 0 ? 0 : (grown / elapsedMs) * 1000;
  }
}
