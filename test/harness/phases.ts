/** One end's phases, and who waits for one of them. */
export class Phases {
  readonly seen: string[] = [];
  #onPhase: () => void = () => {};

  readonly note = (phase: string): void => {
    this.seen.push(phase);
    this.#onPhase();
  };

  /** Returns when it is in this phase; whoever waits has a limit above it. */
  async reach(phase: string): Promise<void> {
    while (this.seen.at(-1) !== phase) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#onPhase = resolve;
      await promise;
    }
  }

  /** Returns when it has come to this phase, also if it has left it again. */
  async begun(phase: string): Promise<void> {
    while (!this.seen.includes(phase)) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#onPhase = resolve;
      await promise;
    }
  }

  count(phase: string): number {
    return this.seen.filter((each) => each === phase).length;
  }
}
