import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { must } from "../../base/assert.ts";
import { nowMs } from "../../base/clock.ts";
import type { Report } from "../../engine/statistics.ts";
import { type Cli, startCli } from "../../test/run-cli.ts";
import { cpuMsOf, loopbackBytes } from "./meters.ts";
import type { Move, Sample } from "./sample.ts";

const PROGRAM = fileURLToPath(new URL("./gated-multifd.ts", import.meta.url));
const LIMIT_MS = 120_000;

/** What is told beside the sample: it is not part of a migration, or only this engine knows it. */
export interface OwnFigures {
  /** Processor time of both processes before they were ready: to start Node and load the program. */
  readonly startCpuMs: number;
  readonly source: Report;
  readonly destination: Report;
}

/** What both ends of the command are told of the guest, and the source of how to move it. */
export interface Words {
  readonly receive: readonly string[];
  readonly send: readonly string[];
  /** At the source, before it begins. */
  readonly readyThreads: number;
}

/** Whether the source's threads are there before it begins, as a host can keep them, or start with it. */
export const SOURCE_THREADS = ["ready", "started"] as const;
export type SourceThreads = (typeof SOURCE_THREADS)[number];

export interface OwnMove extends Move {
  readonly threads: SourceThreads;
}

/** Has two fresh processes move the memory, as anybody would run them. */
export async function moveWithMultifd(
  { sourcePath, destinationPath, channels, compression, threads }: OwnMove,
  folder: string,
  isReady: () => void,
): Promise<{ sample: Sample; own: OwnFigures }> {
  const words = {
    receive: ["--memory", `ram=file:${destinationPath}`],
    send: [
      ...["--memory", `ram=file:${sourcePath}`],
      ...["--channels", String(channels), "--compression", compression],
    ],
  };
  return await runMultifd({ ...words, readyThreads: readyOf(threads, channels) }, folder, isReady);
}

/** A thread per channel. At the destination they start while it listens, in any case. */
export function readyOf(threads: SourceThreads, channels: number): number {
  return threads === "ready" ? channels : 0;
}

export async function runMultifd(
  words: Words,
  folder: string,
  isReady: () => void,
): Promise<{ sample: Sample; own: OwnFigures }> {
  await using receive = new End(`${folder}/receive.cpu`, 0, [
    ...["receive", "tcp:127.0.0.1:0", ...words.receive],
  ]);
  receive.go();
  const { address } = await receive.cli.waitFor("listening");
  const sending = ["send", String(address), ...words.send];
  await using send = new End(`${folder}/send.cpu`, words.readyThreads, sending);
  await send.cli.waitFor("loaded");
  isReady();
  const startCpuMs = [send.cpuMs(), receive.cpuMs()] as const;
  const bytesBefore = loopbackBytes();
  const startMs = nowMs();
  send.go();
  await Promise.all([send.cli.waitFor("completed"), receive.cli.waitFor("completed")]);
  const wallMs = nowMs() - startMs;
  const [source, destination] = await Promise.all([send.report(), receive.report()]);
  return {
    sample: {
      totalMs: source.totalMs,
      wallMs,
      sourceCpuMs: send.lifeCpuMs() - startCpuMs[0],
      destinationCpuMs: receive.lifeCpuMs() - startCpuMs[1],
      wireBytes: loopbackBytes() - bytesBefore,
    },
    own: { startCpuMs: startCpuMs[0] + startCpuMs[1], source, destination },
  };
}

/** One end: the command in a process of its own, loaded and waiting to `go`. */
class End implements AsyncDisposable {
  readonly cli: Cli;
  readonly #cpuPath: string;

  constructor(cpuPath: string, readyThreads: number, words: readonly string[]) {
    this.#cpuPath = cpuPath;
    const options = { program: PROGRAM, input: true, limitMs: LIMIT_MS };
    this.cli = startCli([cpuPath, String(readyThreads), ...words, "--json"], options);
  }

  go(): void {
    this.cli.tell("");
  }

  /** What it has used so far, while it lives. */
  cpuMs(): number {
    return cpuMsOf(must(this.cli.processId, "the command was started"));
  }

  /** What it has used in all, after it ended: also for ending. */
  lifeCpuMs(): number {
    return Number(readFileSync(this.#cpuPath, "utf8"));
  }

  /** Resolves when the process has ended. */
  async report(): Promise<Report> {
    const { status, events, stdout, stderr } = await this.cli.exit;
    const last = events.at(-1);
    if (status !== 0 || last?.event !== "completed") {
      throw new Error(`Cannot move the memory: ${stdout}${stderr}`);
    }
    return last["report"] as Report;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cli[Symbol.asyncDispose]();
    rmSync(this.#cpuPath, { force: true });
  }
}
