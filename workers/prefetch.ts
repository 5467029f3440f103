/** Pages in a row after a fault that are sent unasked. */
const WINDOW_MIN = 4;
const WINDOW_MAX = 64;

/** Where the window that was sent last lies. */
interface Window {
  readonly block: number;
  /** The page that was asked for. */
  readonly first: number;
  /** The first one after it that was not sent. */
  readonly end: number;
}

/**
 * How many pages after a fault are worth sending before anyone asks for them. A guest that goes
 * through memory in order comes to the end of what was sent and asks for the next page: then the
 * window was used, and the next one is twice as long. A fault somewhere else halves it.
 */
export class Prefetch {
  #pages = WINDOW_MIN;
  #last: Window | null = null;

  /** Takes a fault; returns how many pages after it to send. */
  fault(block: number, page: number): number {
    const last = this.#last;
    if (last !== null) {
      const isNext = block === last.block && page >= last.end && page <= last.end + WINDOW_MIN;
      this.#pages = isNext
        ? Math.min(WINDOW_MAX, this.#pages * 2)
        : Math.max(0, Math.floor(this.#pages / 2));
      // One that was given up is tried anew when faults follow each other.
      const isFollower = block === last.block && page > last.first && page <= last.end + 1;
      if (this.#pages === 0 && isFollower) this.#pages = WINDOW_MIN;
    }
    this.#last = { block, first: page, end: page + 1 + this.#pages };
    return this.#pages;
  }
}
