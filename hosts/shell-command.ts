import { type ChildProcess, spawn } from "node:child_process";
import { errnoOf } from "../base/errors.ts";

/**
 * A shell command that a user gave for a step of the host. What it prints goes to standard error:
 * standard output belongs to the migration.
 */
export class ShellCommand {
  readonly #text: string;
  #running: ChildProcess | null = null;

  constructor(text: string) {
    this.#text = text;
  }

  /** Returns when the command has ended well, and throws with how it ended otherwise. */
  async run(): Promise<void> {
    // A group of its own, so that it can be ended with all that it started.
    const child = spawn(this.#text, { shell: true, detached: true, stdio: ["ignore", 2, 2] });
    this.#running = child;
    child.unref(); // One that hangs must not keep us from telling so and ending.
    const ended = Promise.withResolvers<string | null>();
    child.on("error", (error) => ended.reject(error));
    child.on("exit", (status, signal) => {
      if (this.#running === child) this.#running = null;
      ended.resolve(status === 0 ? null : (signal ?? `status ${status}`));
    });
    const how = await ended.promise;
    if (how !== null) throw new Error(`"${this.#text}" ended with ${how}`);
  }

  /** Ends the command if it still runs: what it would do has become wrong. */
  end(): void {
    const pid = this.#running?.pid;
    this.#running = null;
    if (pid === undefined) return;
    try {
      process.kill(-pid, "SIGKILL");
    } catch (error) {
      if (errnoOf(error) !== "ESRCH") throw error; // It ended by itself just now.
    }
  }
}
