import type { MigrationError } from "../base/errors.ts";

/**
 * A stretch of a migration over one set of connections and threads, and the first thing that ended
 * it. Before the guest went over, the migration ends with its leg; in post-copy another may follow.
 */
export class Leg {
  readonly #failed = Promise.withResolvers<never>();
  readonly #onFailure: (error: MigrationError) => void;
  #failure: MigrationError | null = null;

  constructor(onFailure: (error: MigrationError) => void) {
    this.#onFailure = onFailure;
    this.#failed.promise.catch(() => {}); // Whoever waits gets it; there may be nobody.
  }

  get failure(): MigrationError | null {
    return this.#failure;
  }

  fail(error: MigrationError): void {
    if (this.#failure !== null) return;
    this.#failure = error;
    this.#failed.reject(error);
    this.#onFailure(error);
  }

  /** Settles as `work` does, or fails as soon as the leg does. */
  async guard<T>(work: Promise<T>): Promise<T> {
    return await Promise.race([work, this.#failed.promise]);
  }
}
