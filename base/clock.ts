/** Milliseconds of a clock that only goes forward, the same in every thread of this machine. */
export function nowMs(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
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
  const timer = limitMs > TIMER_MS_MAX ? undefined : setTimeout(expire, limitMs);
  work.then(
    (value) => isLate && onLate({ status: "fulfilled", value }),
    (reason) => isLate && onLate({ status: "rejected", reason }),
  );
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
}
