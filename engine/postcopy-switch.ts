/**
 * Lets an embedder, or a signal, begin post-copy while a migration runs: give it to `migrateOut` as
 * `postcopySwitch`. The parameter `postcopy` must allow it: "never" cannot be changed in between.
 */
export class PostcopySwitch {
  #isRequested = false;
  #isAttached = false;
  #onRequest: () => void = () => {};

  /** Goes over as soon as the round that runs can end; before the first round, after it began. */
  start(): void {
    if (this.#isRequested) return;
    this.#isRequested = true;
    this.#onRequest();
  }

  get isRequested(): boolean {
    return this.#isRequested;
  }

  /** Whether a migration is under way that would go over if it were asked. */
  get isAttached(): boolean {
    return this.#isAttached;
  }

  /** For the engine: called once when it is requested, at once if it was. */
  attach(onRequest: () => void): void {
    this.#isAttached = true;
    this.#onRequest = onRequest;
    if (this.#isRequested) onRequest();
  }

  detach(): void {
    this.#isAttached = false;
    this.#onRequest = () => {};
  }
}
