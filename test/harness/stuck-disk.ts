import { spawnSync } from "node:child_process";
import { closeSync, constants, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert } from "../../base/assert.ts";
import { ChannelPool } from "../../engine/pool.ts";
import { REAL_SURROUNDINGS, type Surroundings } from "../../engine/surroundings.ts";
import type { StuckSetup } from "./stuck-worker.ts";

/**
 * A disk that stops answering: threads of one end that reach for it hang in the kernel. Any process
 * can have one, for opening a named pipe waits for its other end as a bad disk waits for nothing.
 */
export class StuckDisk implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "multifd-stuck-"));
  readonly #pipe = join(this.#folder, "pipe");
  readonly #words = new Int32Array(new SharedArrayBuffer(8));
  readonly surroundings: Surroundings;
  #isOver = false;

  constructor(task: StuckSetup["task"]) {
    const { status, stderr } = spawnSync("mkfifo", [this.#pipe], { encoding: "utf8" });
    assert(status === 0, `mkfifo works: ${stderr}`);
    this.surroundings = {
      ...REAL_SURROUNDINGS,
      startThreads: ({ module, setup, channels }) => {
        const stuck: StuckSetup = {
          real: module.href,
          pipe: this.#pipe,
          task,
          words: this.#words,
        };
        return new ChannelPool({
          module: new URL("stuck-worker.ts", import.meta.url),
          setup: { ...setup, stuck },
          channels,
        });
      },
    };
  }

  /** From now on it does not answer. */
  block(): void {
    Atomics.store(this.#words, 0, 1);
  }

  /** Resolves when a thread hangs. */
  async reached(): Promise<void> {
    const waiting = Atomics.waitAsync(this.#words, 1, 0);
    if (waiting.async) await waiting.value;
  }

  /** Answers again, also those who wait. */
  [Symbol.dispose](): void {
    if (this.#isOver) return;
    this.#isOver = true;
    Atomics.store(this.#words, 0, 0);
    // Reading and writing: whoever opens it to read goes on, and who comes later does not wait.
    const fd = openSync(this.#pipe, constants.O_RDWR);
    rmSync(this.#folder, { recursive: true });
    // A reader that was woken has its end by now: the kernel gives it before this call returns.
    closeSync(fd);
  }
}
