import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { assert, must } from "../base/assert.ts";
import { within } from "../base/clock.ts";
import { MINUTE_MS } from "../base/units.ts";
import type { Verdict } from "./arrived-guest.ts";
import { say } from "./standard-streams.ts";

/** What the destination says on its standard output beside the usual events. */
type Said =
  | { readonly event: "listening"; readonly address: string }
  | { readonly event: "failed"; readonly failure: { readonly message: string } }
  | ({ readonly event: "verified" } & Verdict);

const START_LIMIT_MS = 30_000;

/** Beside the time that the guest runs on, which the demo can be told to be ten minutes. */
const VERDICT_LIMIT_MS = 15 * MINUTE_MS;

/** A child that does not end by itself in this time is ended. */
const STOP_LIMIT_MS = 2000;

/** The demo's other process, so that its guest really crosses one. */
export class DemoDestination {
  readonly #process: ChildProcess;
  readonly #address = Promise.withResolvers<string>();
  readonly #verdict = Promise.withResolvers<Verdict>();
  readonly #ended = Promise.withResolvers<void>();

  constructor(flags: readonly string[]) {
    const launcher = must(process.argv[1], "a command was started from a file");
    this.#process = spawn(process.execPath, [launcher, "demo", "--json", ...flags], {
      // Its standard input is how it learns that this process is gone, see `endWithParent`.
      stdio: ["pipe", "pipe", "inherit"],
      // An interrupt from the terminal goes to this process alone, which tells the other.
      detached: true,
    });
    const { stdin, stdout } = this.#process;
    assert(stdin !== null && stdout !== null, "both are pipes");
    stdin.on("error", () => {}); // Nothing is written there.
    createInterface(stdout).on("line", (line) => this.#hear(JSON.parse(line) as Said));
    this.#process.once("error", (error) => this.#fail(error));
    this.#process.once("close", () => {
      this.#fail(new Error("the destination's process ended"));
      this.#ended.resolve();
    });
    // Who waits for one of them gets it; the other, nobody may.
    this.#address.promise.catch(() => {});
    this.#verdict.promise.catch(() => {});
  }

  get processId(): number | undefined {
    return this.#process.pid;
  }

  /** Where it listens. */
  get address(): Promise<string> {
    return within(START_LIMIT_MS, this.#address.promise, () => late(START_LIMIT_MS));
  }

  get verdict(): Promise<Verdict> {
    return within(VERDICT_LIMIT_MS, this.#verdict.promise, () => late(VERDICT_LIMIT_MS));
  }

  /** Ends the process, whatever it does. */
  async stop(): Promise<void> {
    this.#process.stdin?.end();
    const kill = setTimeout(() => this.#process.kill("SIGKILL"), STOP_LIMIT_MS);
    await this.#ended.promise;
    clearTimeout(kill);
  }

  #hear(said: Said): void {
    if (said.event === "listening") this.#address.resolve(said.address);
    if (said.event === "verified") this.#verdict.resolve(said);
    if (said.event === "failed") this.#fail(new Error(said.failure.message));
  }

  #fail(error: Error): void {
    this.#address.reject(error);
    this.#verdict.reject(error);
  }
}

function late(limitMs: number): Error {
  return new Error(`the destination said nothing for ${limitMs} ms`);
}

/**
 * In the child: ends this process as soon as the parent says so or is gone, however it went. A
 * demo's guest that nobody watches any more is of no use to anyone.
 */
export function endWithParent(): void {
  const end = (): never => process.exit(1);
  process.stdin.once("end", end).once("error", end).resume();
}

export function tellVerdict(verdict: Verdict): void {
  say(`${JSON.stringify({ event: "verified", ...verdict })}\n`);
}
