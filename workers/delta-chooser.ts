import { MIB } from "../base/units.ts";
import type { Way } from "./choice.ts";
import type { Compressor, Memory } from "./compressor.ts";
import type { CounterRow } from "./control.ts";
import { DeltaChoice } from "./delta-choice.ts";
import type { Description } from "./describer.ts";
import type { WriteFigures } from "./frame-writer.ts";

/**
 * Brings `DeltaChoice` what it must know of one channel: what comparing took, and what the frames
 * cost that followed. Without `auto` there is nothing to choose.
 */
export class DeltaChooser {
  readonly #compressor: Compressor;
  readonly #counters: CounterRow;
  readonly #choice = new DeltaChoice();
  /** Since the last frame: what comparing took, and the pages that were looked at, zeros left out. */
  #comparedMs = 0;
  #pageBytes = 0;
  /** Changes that were counted. */
  #toldChanges = 0;

  constructor(compressor: Compressor, counters: CounterRow) {
    this.#compressor = compressor;
    this.#counters = counters;
  }

  /** Time begins to count: what went by since the last frame was not spent on sending. */
  begin(): void {
    this.#compressor.begin();
    this.#comparedMs = 0;
    this.#pageBytes = 0;
    if (!this.#compressor.isAuto) this.#counters.set("deltaChoice", 0); // It has been switched off.
  }

  /** Whether pages of this memory should be compared with what the cache has of them. */
  mayTry(memory: Memory): boolean {
    return !this.#compressor.isAuto || this.#choice.mayTry(memory, this.#compressor.terms);
  }

  /** Pages went without being looked up, for that is what was chosen. */
  passedOver(pages: number): void {
    this.#counters.add("deltaPassedPages", pages);
  }

  /** Pages were described, in `pageBytes` of which was something else than zeros. */
  described(pageBytes: number): void {
    this.#pageBytes += pageBytes;
  }

  /** They were compared with their versions, which took `ms`. */
  compared(
    memory: Memory,
    { hits, overflows, payloadBytes }: Description,
    { pageBytes, ms }: { pageBytes: number; ms: number },
  ): void {
    this.#comparedMs += ms;
    if (!this.#compressor.isAuto) return;
    const savedBytes = Math.max(0, pageBytes - payloadBytes);
    const compared = { hits, overflows, pageBytes, savedBytes, ms };
    this.#compressor.spend(this.#choice.extraWorkMs(compared));
    const { terms } = this.#compressor;
    this.#choice.learn(memory, compared, terms);
    this.#tell(terms.way);
  }

  /** A frame of what was described has gone: `auto` learns from what it cost. */
  sent(frame: { payloadBytes: number; wireBytes: number; write: WriteFigures }): void {
    const cost = this.#compressor.learn(frame);
    if (cost !== null) {
      const elapsedMs = Math.max(0, cost.elapsedMs - this.#comparedMs);
      this.#choice.learnFrame({ ...cost, elapsedMs, pageBytes: this.#pageBytes });
    }
    this.#comparedMs = 0;
    this.#pageBytes = 0;
  }

  /** What `auto` chose, and why, for the report. */
  #tell(way: Way): void {
    const { comparing, whole } = this.#choice.costMs(way);
    const { isGivenUp, changes } = this.#choice;
    this.#counters.set("deltaChoice", isGivenUp ? 2 : 1);
    this.#counters.set("deltaComparingMsPerMiB", (comparing ?? 0) * MIB);
    this.#counters.set("deltaWholeMsPerMiB", (whole ?? 0) * MIB);
    this.#counters.add("deltaChoiceChanges", changes - this.#toldChanges);
    this.#toldChanges = changes;
  }
}
