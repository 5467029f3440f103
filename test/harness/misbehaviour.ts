/**
 * How a host fails at a step. It gets what the step would do, and may do that before, after, late
 * or never.
 */
export type Misbehaviour = <T>(act: () => Promise<T>) => Promise<T>;

export const REASON = "the device is on fire";

/** Fails before anything took effect. */
export const throws: Misbehaviour = async () => {
  throw new Error(REASON);
};

/** Fails although it took effect. */
export const throwsAfterActing: Misbehaviour = async (act) => {
  await act();
  throw new Error(REASON);
};

/** Hangs before anything took effect. */
export const hangs: Misbehaviour = () => new Promise<never>(() => {});

/** Takes effect and hangs: nobody is told. */
export const hangsAfterActing: Misbehaviour = async (act) => {
  await act();
  return await new Promise<never>(() => {});
};

/** A step that takes effect and returns when the test says so, however late that is. */
export class Delay {
  readonly #gate = Promise.withResolvers<void>();
  readonly #begun = Promise.withResolvers<void>();
  readonly #done = Promise.withResolvers<void>();

  readonly misbehaviour: Misbehaviour = async (act) => {
    this.#begun.resolve();
    await this.#gate.promise;
    try {
      return await act();
    } finally {
      this.#done.resolve();
    }
  };

  /** The engine has called the step. */
  get begun(): Promise<void> {
    return this.#begun.promise;
  }

  /** Lets the step go on; resolves when it took effect and whoever waited for it was told. */
  async end(): Promise<void> {
    this.#gate.resolve();
    await this.#done.promise;
    await new Promise((resolve) => setImmediate(resolve));
  }
}
