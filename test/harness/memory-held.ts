import { setImmediate as turn } from "node:timers/promises";
import { expect } from "vitest";
import { Deadline } from "../../base/clock.ts";
import { collectGarbage } from "./collect-garbage.ts";

/** A buffer that nobody can reach any more may be freed some collections later. */
const LIMIT_MS = 10_000;

/** So many collections in a row free nothing: what there is is held. */
const QUIET_LOOKS = 8;

/**
 * Remembers how many bytes of buffers this process holds: guests, page tables, what threads are set
 * up with. Shared ones count, too, and all are told to the byte, where the memory of the process as a
 * whole goes up by a hundred megabytes at once, and stays there, for reasons of the allocator's own.
 * What a thread has to itself goes with the thread, which `LeakCheck` counts.
 */
export class MemoryCheck {
  readonly #beforeBytes: number;

  private constructor(beforeBytes: number) {
    this.#beforeBytes = beforeBytes;
  }

  /** Begins when what is garbage by now has gone. What is made once and kept must be there. */
  static async begin(): Promise<MemoryCheck> {
    let heldBytes = bufferBytes();
    for (let quiet = 0; quiet < QUIET_LOOKS; quiet += 1) {
      await turn();
      const bytes = bufferBytes();
      if (bytes < heldBytes) quiet = 0;
      heldBytes = bytes;
    }
    return new MemoryCheck(heldBytes);
  }

  /** Throws where more than `limitBytes` came on top, once garbage was given the time to go. */
  async settled(limitBytes: number): Promise<void> {
    const deadline = new Deadline(LIMIT_MS);
    while (!deadline.passed && this.#growthBytes > limitBytes) await turn();
    expect(this.#growthBytes, "bytes that were left behind").toBeLessThanOrEqual(limitBytes);
  }

  get #growthBytes(): number {
    return bufferBytes() - this.#beforeBytes;
  }
}

function bufferBytes(): number {
  collectGarbage();
  return process.memoryUsage().arrayBuffers;
}
