/** Where time comes from. Everything here goes by it: a simulation puts its own in place. */
export interface Clock {
  /** Only goes forward. */
  nowMs(): number;
  /** Processor time of this process, all its threads together. */
  cpuMs(): number;
  /** Calls once, after `ms`. Returns what prevents it. */
  after(ms: number, call: () => void): () => void;
  /** Calls every `ms`. Returns what ends it. */
  every(ms: number, call: () => void): () => void;
}

/** The first ones take longest. */
const CLOCK_TRIES = 8;

/** From `performance.now()`, which begins with its thread, to the clock that all threads have. */
const THREAD_BEGAN_MS = threadBeganMs();

const REAL_CLOCK: Clock = {
  // `process.hrtime.bigint()` allocates: lanes look at the clock dozens of times for a page.
  nowMs: () => THREAD_BEGAN_MS + performance.now(),
  cpuMs() {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  },
  after(ms, call) {
    const timer = setTimeout(call, ms);
    return () => clearTimeout(timer);
  },
  every(ms, call) {
    const timer = setInterval(call, ms);
    return () => clearInterval(timer);
  },
};

let clock = REAL_CLOCK;

/** Of several tries the one in which the least went by between the looks at both clocks. */
function threadBeganMs(): number {
  let best = { tookMs: Number.POSITIVE_INFINITY, beganMs: 0 };
  for (let tries = 0; tries < CLOCK_TRIES; tries += 1) {
    const beforeMs = performance.now();
    const commonMs = Number(process.hrtime.bigint()) / 1e6;
    const afterMs = performance.now();
    const tookMs = afterMs - beforeMs;
    if (tookMs < best.tookMs) best = { tookMs, beganMs: commonMs - (beforeMs + afterMs) / 2 };
  }
  return best.beganMs;
}

/** Goes by another clock in this thread, until what it returns is called. Before anything waits. */
export function useClock(other: Clock): () => void {
  clock = other;
  return () => {
    clock = REAL_CLOCK;
  };
}

/** Milliseconds of a clock that only goes forward, the same in every thread of this machine. */
export function nowMs(): number {
  return clock.nowMs();
}

/** Milliseconds of a processor that this process has used, with all its threads. */
export function cpuMs(): number {
  return clock.cpuMs();
}

/** Calls once, after `ms`. Returns what prevents it. */
export function after(ms: number, call: () => void): () => void {
  return clock.after(ms, call);
}

/** Calls every `ms`. Returns what ends it. */
export function every(ms: number, call: () => void): () => void {
  return clock.every(ms, call);
}

/** A moment that a wait must not pass. */
export class Deadline {
  readonly limitMs: number;
  readonly #atMs: number;

  constructor(limitMs: number) {
    this.limitMs = limitMs;
    this.#atMs = nowMs() + limitMs;
  }

  get leftMs(): number {
    return Math.max(0, this.#atMs - nowMs());
  }

  get passed(): boolean {
    return nowMs() >= this.#atMs;
  }
}

/** Longer limits than Node's timers can hold are no limits. */
const TIMER_MS_MAX = 2 ** 31 - 1;

/**
 * Settles as `work` does, or fails with what `late` makes once `limitMs` have gone by. The work is
 * not stopped: `onLate` is told how it ended, if it ever does, so that its effect can be undone.
 */
export async function within<T>(
  limitMs: number,
  work: Promise<T>,
  late: () => Error,
  onLate: (outcome: PromiseSettledResult<T>) => void = () => {},
): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  let isLate = false;
  const expire = (): void => {
    isLate = true;
    reject(late());
  };
  const prevent = limitMs > TIMER_MS_MAX ? undefined : after(limitMs, expire);
  work.then(
    (value) => isLate && onLate({ status: "fulfilled", value }),
    (reason) => isLate && onLate({ status: "rejected", reason }),
  );
  try {
    return await Promise.race([work, promise]);
  } finally {
    prevent?.();
  }
}

/** Returns when all of them have settled, however, and after `limitMs` in any case. */
export async function settledWithin(
  limitMs: number,
  work: Iterable<Promise<unknown>>,
): Promise<void> {
  const late = (): Error => new Error("it takes longer");
  await within(limitMs, Promise.allSettled(work), late).catch(() => {});
}
