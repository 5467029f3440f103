import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { LinkEnd } from "./link.ts";
import type { Answer, Order, Peer } from "./peer.ts";

/**
 * Node keeps here what it made of the sources: threads then start as fast, and as small, as those
 * of the built package, which need no types stripped.
 */
const CODE_CACHE = join(tmpdir(), "multifd-bench");

/** A process whose threads wait in the kernel does not end by itself. */
const END_LIMIT_MS = 10_000;

type Method = (...words: never[]) => Promise<unknown>;
type Orders = { [K in keyof Peer as Peer[K] extends Method ? K : never]: Peer[K] };

/** A `Peer` in a process of its own. Orders are answered in any order; dispose of it to end it. */
export class PeerProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>();
  #orders = 0;
  #isEnding = false;

  /** `within` is a command that runs the one given to it somewhere else, such as in a namespace. */
  constructor(within: readonly string[] = []) {
    const [execPath = process.execPath, ...words] = [...within, process.execPath];
    this.#child = fork(fileURLToPath(new URL("./peer.ts", import.meta.url)), {
      execPath,
      // Passed on so that `node --cpu-prof bench/run.ts` profiles the ends, where the work is.
      execArgv: [...words, ...process.execArgv, "--expose-gc"],
      env: { ...process.env, NODE_COMPILE_CACHE: CODE_CACHE },
    });
    this.#child.on("message", (answer: Answer) => {
      const waiting = this.#waiting.get(answer.id);
      this.#waiting.delete(answer.id);
      if ("problem" in answer) waiting?.reject(new Error(`a peer failed: ${answer.problem}`));
      else waiting?.resolve(answer.value);
    });
    this.#child.once("exit", (code, signal) => {
      if (this.#isEnding) return;
      const gone = new Error(`a peer's process ended early: ${signal ?? code}`);
      for (const { reject } of this.#waiting.values()) reject(gone);
    });
  }

  order<K extends keyof Orders>(name: K, ...words: Parameters<Orders[K]>): ReturnType<Orders[K]> {
    const answer = Promise.withResolvers<unknown>();
    const order: Order = { id: this.#orders, name, words };
    this.#orders += 1;
    this.#waiting.set(order.id, answer);
    this.#child.send(order);
    return answer.promise as ReturnType<Orders[K]>;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isEnding = true;
    const ended = once(this.#child, "exit");
    if (this.#child.connected) this.#child.disconnect();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), END_LIMIT_MS);
    await ended;
    clearTimeout(timer);
  }
}

/** Both ends of a migration. */
export class Pair implements AsyncDisposable {
  readonly source: PeerProcess;
  readonly destination: PeerProcess;

  /** On this machine as it is, or at the two ends of a link. */
  constructor(ends?: { near: LinkEnd; far: LinkEnd }) {
    this.source = new PeerProcess(ends?.near.within);
    this.destination = new PeerProcess(ends?.far.within);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([
      this.source[Symbol.asyncDispose](),
      this.destination[Symbol.asyncDispose](),
    ]);
  }
}
