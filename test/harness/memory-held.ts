import { expect } from "vitest";
import { Deadline } from "../../base/clock.ts";
import { collectGarbage } from "./collect-garbage.ts";

/** A buffer that nobody can reach any more may be freed some collections later. */
const LIMIT_MS = 10_000;

/** So many collections in a row free nothing: what there is is held. */
const QUIET_LOOKS = 8;

/** What this process holds in bytes, garbage aside. */
export interface Held {
  /** Buffers of the main thread, shared ones included: guests, tables, caches. Exact. */
  readonly buffers: number;
  /** Everything, also what threads hold, and what the allocator keeps for later. */
  readonly resident: number;
}

/** Remembers how much memory the process holds. What Node and the engine make once must be there. */
export class MemoryCheck {
  readonly #before: Held;

  private constructor(before: Held) {
    this.#before = before;
  }

  /** Begins when what is garbage by now has gone. */
  static async begin(): Promise<MemoryCheck> {
    let least = held();
    for (let quiet = 0; quiet < QUIET_LOOKS; quiet += 1) {
      await new Promise((resolve) => setImmediate(resolve));
      const now = held();
      if (now.buffers < least.buffers) quiet = 0;
      least = now;
    }
    return new MemoryCheck(least);
  }

  /** Throws where more than `limits` came on top, once garbage was given the time to go. */
  async settled(limits: Held): Promise<void> {
    const deadline = new Deadline(LIMIT_MS);
    let growth = this.#growth();
    while (
      !deadline.passed &&
      (growth.buffers > limits.buffers || growth.resident > limits.resident)
    ) {
      await new Promise((resolve) => setImmediate(resolve));
      growth = this.#growth();
    }
    expect(growth.buffers, "bytes of buffers more").toBeLessThanOrEqual(limits.buffers);
    expect(growth.resident, "bytes of memory more").toBeLessThanOrEqual(limits.resident);
  }

  #growth(): Held {
    const { buffers, resident } = held();
    return {
      buffers: buffers - this.#before.buffers,
      resident: resident - this.#before.resident,
    };
  }
}

function held(): Held {
  collectGarbage();
  const { arrayBuffers, rss } = process.memoryUsage();
  return { buffers: arrayBuffers, resident: rss };
}
