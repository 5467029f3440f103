import { within } from "../base/clock.ts";
import { asMigrationError, MigrationError, type Origin, reasonOf } from "../base/errors.ts";
import type { Hold } from "./hold.ts";

/** A step that a host performs. */
export interface HostStep<T> {
  /** For messages: what it could not do. */
  readonly action: string;
  readonly limitMs: number;
  call(): Promise<T>;
  /** Where its effect lasts: how it is taken back, should it come when the attempt is over. */
  readonly lasting?: { readonly hold: Hold; undo(): Promise<unknown> };
}

/**
 * One attempt at a migration at one end: which phase it is in, and the first thing that ended it.
 * Everything that waits does so in `guard`, so that a failure, a cancel or a deadline anywhere
 * ends every wait at once.
 */
export class Attempt<Phase extends string> {
  readonly side: Origin;
  readonly #failed = Promise.withResolvers<never>();
  readonly #onPhase: (phase: Phase) => void;
  readonly #onFailure: (() => void)[] = [];
  readonly #signal: AbortSignal | undefined;
  #failure: MigrationError | null = null;
  #isCommitted = false;
  #isOver = false;
  /** Committed, and waiting for somebody to recover it: a cancel ends that. */
  #isPaused = false;
  phase: Phase;

  constructor(options: {
    side: Origin;
    first: Phase;
    signal?: AbortSignal | undefined;
    onPhase?: ((phase: Phase) => void) | undefined;
  }) {
    this.side = options.side;
    this.phase = options.first;
    this.#onPhase = options.onPhase ?? (() => {});
    this.#failed.promise.catch(() => {}); // Whoever waits gets it; there may be nobody.
    this.#signal = options.signal;
    this.#signal?.addEventListener("abort", this.#cancel);
    if (this.#signal?.aborted === true) this.#cancel();
  }

  get failure(): MigrationError | null {
    return this.#failure;
  }

  /** Runs one phase. Its failure is the attempt's. */
  async run<T>(phase: Phase, work: () => Promise<T>): Promise<T> {
    this.#enter(phase);
    try {
      return await this.guard(work());
    } catch (error) {
      this.fail(asMigrationError(error));
      throw this.#failure ?? error;
    }
  }

  /**
   * Goes over to another phase within `run`; it may be cancelled while it is paused. A cancel that came
   * too late stays without effect: a link that breaks some time after it must not cost the guest.
   */
  change(phase: Phase, { isPaused = false }: { isPaused?: boolean } = {}): void {
    this.#isPaused = isPaused;
    this.#enter(phase);
  }

  #enter(phase: Phase): void {
    this.#throwIfFailed();
    this.phase = phase;
    this.callBack(() => this.#onPhase(phase));
    this.#throwIfFailed();
  }

  /** Settles as `work` does, or fails as soon as the attempt does. */
  async guard<T>(work: Promise<T>): Promise<T> {
    return await Promise.race([work, this.#failed.promise]);
  }

  /**
   * Asks the host for a step, with a deadline. When the attempt ends first, the step may still take
   * effect some time: it is taken back then, so that it does not outlive the attempt.
   */
  async askHost<T>(step: HostStep<T>): Promise<T> {
    const { action, limitMs, lasting } = step;
    this.#throwIfFailed();
    const watched = async (): Promise<T> => {
      lasting?.hold.take();
      const result = await step.call();
      // Nobody is left to tell that it failed: whoever undid the rest has reported already.
      if (lasting?.hold.isLeftOver === true) lasting.undo().catch(() => {});
      return result;
    };
    return await callHost(action, limitMs, () => this.guard(watched()));
  }

  /**
   * Calls the embedder back. What it throws ends the attempt; after COMMIT nothing of it may. Nobody
   * waits for a callback that is asynchronous, but what it throws is the same.
   */
  callBack(call: () => unknown): void {
    const failed = (error: unknown): void => {
      if (!this.#isCommitted) this.fail(asMigrationError(error));
    };
    try {
      const answer = call();
      if (answer instanceof Promise) answer.catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  /** Ends the attempt unless something else did before, or it succeeded. */
  fail(error: MigrationError): void {
    if (this.#failure !== null || this.#isOver) return;
    this.#failure = error;
    this.#failed.reject(error);
    for (const react of this.#onFailure) react();
  }

  /** Called once when the attempt fails, at once if it has. */
  onFailure(react: () => void): void {
    if (this.#failure !== null) react();
    else this.#onFailure.push(react);
  }

  /** From here on a cancel comes too late. */
  commit(): void {
    this.#throwIfFailed();
    this.#isCommitted = true;
  }

  /** As a cancel, where nothing but a pause is to be ended. */
  cancelPause(): void {
    if (this.#isPaused) this.#cancel();
  }

  get isCommitted(): boolean {
    return this.#isCommitted;
  }

  /** The guest runs at the destination: nothing that happens now can make that a failure. */
  succeed(): void {
    this.#throwIfFailed();
    this.#isOver = true;
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** Lets go of the signal. */
  end(): void {
    this.#signal?.removeEventListener("abort", this.#cancel);
  }

  #throwIfFailed(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  readonly #cancel = (): void => {
    if (!this.#isCommitted || this.#isPaused)
      this.fail(new MigrationError("CANCELLED", { phase: this.phase }));
  };
}

/**
 * Calls a host with a deadline. A host that throws is HOST_FAILED (unless it throws a MigrationError
 * itself), one that does not return is HOST_TIMEOUT.
 */
export async function callHost<T>(
  action: string,
  limitMs: number,
  call: () => Promise<T>,
): Promise<T> {
  try {
    // A host may throw before it returns a promise; both are the same to us.
    const late = () => new MigrationError("HOST_TIMEOUT", { action, limitMs });
    return await within(limitMs, Promise.try(call), late);
  } catch (error) {
    // Who owns the guest is not for a host to say.
    if (error instanceof MigrationError && error.remedy !== "settle") throw error;
    throw new MigrationError("HOST_FAILED", { action, reason: reasonOf(error) }, { cause: error });
  }
}
