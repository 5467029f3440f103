import { expect } from "vitest";
import { addedTo, holdings } from "./holdings.ts";

/**
 * Remembers what the process holds; `settled` says that nothing was added since. What Node makes
 * once and keeps must be there already: run one migration before.
 */
export class LeakCheck {
  readonly #before = holdings();

  async settled(): Promise<void> {
    const after = await addedTo(this.#before);
    if (after !== null) expect(after).toEqual(this.#before);
  }
}
