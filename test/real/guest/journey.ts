import { expect } from "vitest";
import { must } from "../../../base/assert.ts";
import { type Cli, type CliExit, startCli } from "../../run-cli.ts";
import { problemsOf } from "./beats.ts";
import { Qemu, type QemuRequest } from "./qemu.ts";

/** Nothing here takes long on an idle machine; this one may be busy. */
const MOVE_LIMIT_MS = 120_000;

/**
 * On a busy machine a guest may write faster than it is sent, or than a codec takes it: after some
 * rounds it is paused all the same, for what counts is that all arrives.
 */
export const HOWEVER_LONG = ["--non-convergence", "switch-over", "--max-rounds", "3"];

/** Ten seconds of the guest's own time, for after the last move of a case. */
export const LONG_BEATS = 100;

/** How a guest is moved once. */
export interface Move {
  /** For both ends. */
  readonly flags?: readonly string[];
  readonly sourceFlags?: readonly string[];
  /** How the destination differs from where the guest was booted. */
  readonly destination?: Partial<QemuRequest>;
  /** What QEMU says of the guest on arrival. */
  readonly arrives?: "running" | "paused";
}

/** One guest that goes from QEMU to QEMU, and all that it has said on its way. */
export class Journey implements AsyncDisposable {
  readonly #request: QemuRequest;
  readonly #former: string[] = [];
  #here: Qemu;

  private constructor(request: QemuRequest, here: Qemu) {
    this.#request = request;
    this.#here = here;
  }

  static async begin(request: QemuRequest): Promise<Journey> {
    return new Journey(request, await Qemu.boot(request));
  }

  /** Where the guest is. */
  get here(): Qemu {
    return this.#here;
  }

  /** A fresh QEMU that waits for it. */
  async destination(different: Partial<QemuRequest> = {}): Promise<Qemu> {
    return await Qemu.start({ ...this.#request, isIncoming: true, ...different });
  }

  /** Moves it to a fresh QEMU and returns what both ends of the engine said. */
  async move(move: Move = {}): Promise<{ source: CliExit; destination: CliExit }> {
    const there = await this.destination(move.destination);
    try {
      await using receive = startReceive(there, move.flags);
      const address = await addressOf(receive);
      const sourceFlags = [...(move.flags ?? []), ...(move.sourceFlags ?? [])];
      await using send = startSend(this.#here, address, sourceFlags);
      const [source, destination] = await Promise.all([send.exit, receive.exit]);
      for (const exit of [source, destination]) expectCompleted(exit);
      await this.goOnAt(there, move.arrives);
      return { source, destination };
    } catch (error) {
      if (this.#here !== there) await there[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The guest has moved there: it stands still here for good, and says nothing more. */
  async goOnAt(there: Qemu, arrives: "running" | "paused" = "running"): Promise<void> {
    expect(await there.status()).toBe(arrives);
    expect(await this.#here.status()).toBe("postmigrate");
    await this.goneTo(there);
  }

  /** The same, without asking QEMUs that may have ended. */
  async goneTo(there: Qemu): Promise<void> {
    const former = this.#here;
    this.#here = there;
    await former[Symbol.asyncDispose](); // After that everything that it wrote was read.
    this.#former.push(former.serial.text);
  }

  /** It beats so often more, and finds all of its memory in order so many times more. */
  async expectRunsOn({ beats, sweeps = 0 }: { beats: number; sweeps?: number }): Promise<void> {
    expect(await this.#here.status()).toBe("running");
    await Promise.all([this.#here.waitForBeats(beats), this.#here.waitForSweeps(sweeps)]);
    expect(this.problems()).toEqual([]);
  }

  /** All that was ever wrong with it, on its whole way. */
  problems(): string[] {
    const { text } = this.#here.serial;
    return problemsOf([...this.#former, text.slice(0, text.lastIndexOf("\n") + 1)]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#here[Symbol.asyncDispose]();
  }
}

/** Where the engine finds a QEMU: itself, or somebody who stands between. */
export type Monitor = Pick<Qemu, "qmpPath">;

/** The engine at the destination, which listens somewhere. */
export function startReceive({ qmpPath }: Monitor, flags: readonly string[] = []): Cli {
  const words = ["receive", "tcp:127.0.0.1:0", "--qemu", qmpPath, "--json", ...flags];
  return startCli(words, { limitMs: MOVE_LIMIT_MS });
}

export function startSend(
  { qmpPath }: Monitor,
  address: string,
  flags: readonly string[] = [],
): Cli {
  const words = ["send", address, "--qemu", qmpPath, "--json", ...flags];
  return startCli(words, { limitMs: MOVE_LIMIT_MS });
}

export async function addressOf(receive: Cli): Promise<string> {
  return String((await receive.waitFor("listening"))["address"]);
}

export function expectCompleted({ status, events, stdout, stderr }: CliExit): void {
  expect(events.at(-1)?.event, `${stdout}${stderr}`).toBe("completed");
  expect(status).toBe(0);
}

/** As much of a report as is looked at. */
interface Report {
  readonly channels: readonly {
    readonly lane: string;
    readonly sentBytes: number;
    readonly scan: { readonly readBytes: number };
  }[];
  readonly rounds: readonly unknown[];
  readonly pages: { readonly compressed: number; readonly delta: number };
}

export function reportOf({ events }: CliExit): Report {
  return must(events.at(-1), "a command ends with an event")["report"] as Report;
}
