import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { createInterface, type Interface } from "node:readline";
import { fileURLToPath } from "node:url";
import { assert } from "../base/assert.ts";

/** One line of `--json`; what else an event carries is its own. */
export interface CliEvent {
  readonly event: string;
  readonly [fact: string]: unknown;
}

export interface CliExit {
  /** The exit status, or null when a signal ended the command. */
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly events: readonly CliEvent[];
  readonly stdout: string;
  readonly stderr: string;
}

export interface CliOptions {
  /** After so long the command is killed and everybody who waits for it fails. */
  readonly limitMs?: number;
  /** Added to this process's environment. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Handed over as descriptors 3, 4 and so on. */
  readonly descriptors?: readonly number[];
  /** The program to run instead of this checkout's, such as an installed one. */
  readonly program?: string;
  /** A command, with arguments, that runs the program that follows it, such as `unshare`. */
  readonly through?: readonly string[];
  /** Its standard input is written by `tell`; else it is empty. */
  readonly input?: boolean;
}

const PROGRAM = fileURLToPath(new URL("../cli/multifd.js", import.meta.url));
const LIMIT_MS = 60_000;

/** What an error shows of the command's output. */
const TAIL_CHARACTERS = 2000;

/** Starts `multifd` with these arguments in a process of its own. */
export function startCli(args: readonly string[], options: CliOptions = {}): Cli {
  return new Cli(args, options);
}

/** Runs `multifd` to its end. */
export async function runCli(args: readonly string[], options: CliOptions = {}): Promise<CliExit> {
  await using cli = startCli(args, options);
  return await cli.exit;
}

/**
 * A running `multifd`. With `--json` its output becomes events, and a line that is not one is a
 * failure. `await using` ends the process in every case; so does the exit of this one.
 */
export class Cli {
  /**
   * Resolves when the command has ended and its output was read, with whatever status. Rejects
   * when it could not be started, was killed at its limit or said something that is not an event.
   */
  readonly exit: Promise<CliExit>;
  readonly #process: ChildProcess;
  readonly #args: readonly string[];
  readonly #limitMs: number;
  readonly #events: CliEvent[] = [];
  #lines: Interface | undefined;
  #stdout = "";
  #stderr = "";
  #problem: string | undefined;
  #hasEnded = false;
  #changed = Promise.withResolvers<void>();

  constructor(args: readonly string[], options: CliOptions) {
    this.#args = args;
    this.#limitMs = options.limitMs ?? LIMIT_MS;
    const input = options.input === true ? "pipe" : "ignore";
    const stdio: StdioOptions = [input, "pipe", "pipe", ...(options.descriptors ?? [])];
    const started = [process.execPath, options.program ?? PROGRAM, ...args];
    const [command = "", ...commandArgs] = [...(options.through ?? []), ...started];
    this.#process = spawn(command, commandArgs, {
      stdio,
      ...(options.cwd !== undefined && { cwd: options.cwd }),
      env: { ...process.env, ...options.env },
    });
    // What it has no use for any more is lost with it.
    this.#process.stdin?.on("error", () => {});
    this.exit = this.#watchExit();
    // A test that waits for an event only is told there; nobody need wait for the exit as well.
    this.exit.catch(() => {});
  }

  /** Of the process, to find it in `/proc`. */
  get processId(): number | undefined {
    return this.#process.pid;
  }

  /** Every event so far. */
  get said(): readonly CliEvent[] {
    return this.#events;
  }

  /** Every event so far and to come; ends with the command, fails as `exit` does. */
  async *events(): AsyncGenerator<CliEvent> {
    for (let index = 0; ; index += 1) {
      while (index >= this.#events.length) {
        if (this.#hasEnded) {
          await this.exit;
          return;
        }
        await this.#changed.promise;
      }
      const event = this.#events[index];
      if (event !== undefined) yield event;
    }
  }

  /** The first event of this name (that also is `such`), whether it was said already or not. */
  async waitFor(name: string, such: (event: CliEvent) => boolean = () => true): Promise<CliEvent> {
    for await (const event of this.events()) {
      if (event.event === name && such(event)) return event;
    }
    throw this.#error(`Cannot wait for event "${name}": the command has ended`);
  }

  /** Writes a line to its standard input. */
  tell(line: string): void {
    const { stdin } = this.#process;
    assert(stdin !== null, "its input is a pipe");
    stdin.write(`${line}\n`);
  }

  /** Ends its standard input. */
  endInput(): void {
    this.#process.stdin?.end();
  }

  /** Leaves as a reader: what it says from now on goes nowhere. */
  closeOutput(): void {
    this.#lines?.close();
    this.#process.stdout?.destroy();
  }

  kill(signal: NodeJS.Signals = "SIGTERM"): void {
    this.#process.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill("SIGKILL");
    await this.exit.catch(() => {});
  }

  async #watchExit(): Promise<CliExit> {
    const kill = () => this.kill("SIGKILL");
    process.once("exit", kill);
    const read = this.#readOutput();
    const closed = new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
      this.#process.once("close", (status, signal) => resolve([status, signal]));
    });
    this.#process.once("error", (error) => this.#fail(`Cannot run: ${error.message}`));
    const timer = setTimeout(() => {
      this.#fail(`Cannot finish within ${this.#limitMs} ms`);
      kill();
    }, this.#limitMs);
    const [status, signal] = await closed;
    await read;
    clearTimeout(timer);
    process.removeListener("exit", kill);
    this.#hasEnded = true;
    this.#wake();
    if (this.#problem !== undefined) throw this.#error(this.#problem);
    return { status, signal, events: this.#events, stdout: this.#stdout, stderr: this.#stderr };
  }

  async #readOutput(): Promise<void> {
    const { stdout, stderr } = this.#process;
    assert(stdout !== null && stderr !== null, "both outputs are pipes");
    stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.#lines = createInterface({ input: stdout });
    for await (const line of this.#lines) this.#hear(line);
  }

  #hear(line: string): void {
    this.#stdout += `${line}\n`;
    if (!this.#args.includes("--json")) return;
    const event = parseEvent(line);
    if (event === undefined) this.#fail(`Cannot read "${line}": it is not one JSON event`);
    else this.#events.push(event);
    this.#wake();
  }

  /** The first problem counts; what follows is often a consequence. */
  #fail(problem: string): void {
    this.#problem ??= problem;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  #error(problem: string): Error {
    const said = [this.#stdout, this.#stderr].map((text) => text.slice(-TAIL_CHARACTERS));
    return new Error(`${problem}\nmultifd ${this.#args.join(" ")}\n${said.join("\n")}`);
  }
}

function parseEvent(line: string): CliEvent | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return isEvent(value) ? value : undefined;
  } catch (thrown) {
    if (thrown instanceof SyntaxError) return undefined;
    throw thrown;
  }
}

function isEvent(value: unknown): value is CliEvent {
  return (
    typeof value === "object" &&
    value !== null &&
    "event" in value &&
    typeof value.event === "string"
  );
}
