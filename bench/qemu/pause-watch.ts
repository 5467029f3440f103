import { must } from "../../base/assert.ts";
import { within } from "../../base/clock.ts";
import type { Qmp } from "../../hosts/qemu/qmp.ts";

const LIMIT_MS = 30_000;

/**
 * For how long a guest stood still that moved between two QEMUs of this machine, by what both say:
 * from STOP at the source to RESUME at the destination.
 */
export class PauseWatch implements Disposable {
  readonly #unlisten: readonly (() => void)[];
  readonly #resumed = Promise.withResolvers<number>();
  #stoppedAtMs: number | undefined;

  constructor(source: Qmp, destination: Qmp) {
    this.#unlisten = [
      source.listen(({ name, atMs }) => {
        if (name === "STOP") this.#stoppedAtMs ??= atMs;
      }),
      destination.listen(({ name, atMs }) => {
        if (name === "RESUME") this.#resumed.resolve(atMs);
      }),
    ];
  }

  /** An event may come after whoever caused it has been told that it is done. */
  async pauseMs(): Promise<number> {
    const late = () => new Error(`Cannot tell the pause: no RESUME came within ${LIMIT_MS} ms`);
    const resumedAtMs = await within(LIMIT_MS, this.#resumed.promise, late);
    return resumedAtMs - must(this.#stoppedAtMs, "a guest that runs on was stopped before");
  }

  [Symbol.dispose](): void {
    for (const unlisten of this.#unlisten) unlisten();
  }
}
