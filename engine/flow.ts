/** The rate is that of the last while: long enough for a channel that moves a frame at a time. */
const WINDOW_MS = 2000;

/** Sooner nothing can be told: the first bytes go into empty buffers, as fast as memory is. */
const KNOWN_MS = 400;

/** How a channel goes on now. */
export interface FlowPace {
  /** Since it began. */
  readonly movedBytes: number;
  readonly movedBytesPerMs: number;
  /** For how long what was written is still on its way. */
  readonly backlogMs: number;
}

/**
 * How fast one channel moves bytes, from looks at how many it has written. At first the system takes
 * megabytes at once, later only as many as the link does; so what was written beyond the rate of the
 * last while lies in buffers, and the rate tells how long it will.
 */
export class Flow {
  readonly #looks: { readonly ms: number; readonly movedBytes: number }[] = [];
  #start: { readonly ms: number; readonly movedBytes: number } | null = null;
  hasEnded = false;

  begin(ms: number, movedBytes: number): void {
    this.#start = { ms, movedBytes };
  }

  note(ms: number, movedBytes: number): void {
    if (this.hasEnded) return;
    this.#looks.push({ ms, movedBytes });
    while ((this.#looks[1]?.ms ?? ms) <= ms - WINDOW_MS) this.#looks.shift();
  }

  /** It has nothing more to write: from here on it says nothing of its rate. */
  end(): void {
    this.hasEnded = true;
  }

  paceAt(ms: number): FlowPace | null {
    const [first, last, start] = [this.#looks[0], this.#looks.at(-1), this.#start];
    if (first === undefined || last === undefined || start === null) return null;
    const windowMs = last.ms - first.ms;
    if (windowMs < KNOWN_MS) return null;
    const movedBytesPerMs = (last.movedBytes - first.movedBytes) / windowMs;
    const movedBytes = last.movedBytes - start.movedBytes;
    const wholeMs = movedBytesPerMs > 0 ? movedBytes / movedBytesPerMs : Number.POSITIVE_INFINITY;
    const backlogMs = Math.max(0, wholeMs - (ms - start.ms));
    return { movedBytes, movedBytesPerMs, backlogMs };
  }
}
