import { setImmediate } from "node:timers/promises";

/** What an event loop may be kept from its work at a stretch. */
const SLICE_MS = 5;

/**
 * Divides a long computation into slices between which the event loop runs:
 * `if (slices.areOver) await slices.rest();`
 */
export class Slices {
  #startedMs = performance.now();

  get areOver(): boolean {
    return performance.now() - this.#startedMs >= SLICE_MS;
  }

  async rest(): Promise<void> {
    await setImmediate();
    this.#startedMs = performance.now();
  }
}
