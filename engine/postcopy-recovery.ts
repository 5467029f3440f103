import type { MigrationError } from "../base/errors.ts";

/** What the engine does for `PostcopyRecovery` while a migration runs. */
export interface Recoverable {
  /** Why it is paused; null while it is not. */
  pausedFor(): MigrationError | null;
  recover(address: string | undefined): Promise<string>;
  pause(): void;
  giveUp(): void;
}

/**
 * Lets an embedder, or an operator, go on with a post-copy whose link broke: give one to `migrateOut`
 * or `migrateIn` as `recovery`. In the phase `postcopy-paused` both ends have kept everything: the
 * guest runs at the destination, and waits where it needs a page that only the source has.
 */
export class PostcopyRecovery {
  #end: Recoverable | null = null;

  /** What broke the link; null while the migration is not paused. */
  get pausedFor(): MigrationError | null {
    return this.#end?.pausedFor() ?? null;
  }

  /**
   * At the source: joins the destination again, at `address` or where it was before, and returns when
   * memory moves again. Throws MigrationError when that did not come about, with everything still
   * paused, and RangeError when it is not paused.
   *
   * At the destination, which waits where it listened before: listens at `address` as well. Returns
   * the address as a source can use it.
   */
  async recover(address?: string): Promise<string> {
    if (this.#end === null) throw new RangeError("Cannot recover: no migration runs");
    return await this.#end.recover(address);
  }

  /** Breaks a post-copy off, for it to be recovered over another link. Before, it does nothing. */
  pause(): void {
    this.#end?.pause();
  }

  /**
   * Ends a pause without a recovery, with POSTCOPY_INTERRUPTED, as a cancel in the pause does: what
   * this end has of the guest's memory is given up. Before and after, it does nothing.
   */
  giveUp(): void {
    this.#end?.giveUp();
  }

  /** For the engine. */
  attach(end: Recoverable): void {
    this.#end = end;
  }

  /** For the engine: the migration is over. */
  detach(): void {
    this.#end = null;
  }
}
