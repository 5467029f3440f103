import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { assert, must } from "../../base/assert.ts";
import { Deadline, nowMs } from "../../base/clock.ts";
import { MIB } from "../../base/units.ts";
import { Qmp } from "../../hosts/qemu/qmp.ts";
import { cpuMsOf, loopbackBytes } from "./meters.ts";
import { MigratingEnd } from "./migrating-end.ts";
import type { Move, Sample } from "./sample.ts";

const START_LIMIT_MS = 60_000;

/** The largest that QEMU takes: it stops iterating as soon as it may. */
const DOWNTIME_MS_MAX = 2_000_000;

/** Has two QEMUs, neither of which ever runs its guest, move the memory. */
export async function moveWithQemu(
  move: Move,
  folder: string,
  isReady: () => void,
): Promise<Sample> {
  const { compression } = move;
  assert(compression !== "auto", "QEMU does not choose");
  await using source = new Qemu(move.sourcePath, { ...move, socketPath: `${folder}/source.qmp` });
  await using destination = new Qemu(move.destinationPath, {
    ...move,
    socketPath: `${folder}/destination.qmp`,
    isIncoming: true,
  });
  const settings = { ...move, compression, downtimeLimitMs: DOWNTIME_MS_MAX };
  const [from, to] = await Promise.all([
    source.connect().then((monitor) => MigratingEnd.prepare(monitor, settings)),
    destination.connect().then((monitor) => MigratingEnd.prepare(monitor, settings)),
  ]);
  const uri = await to.listen();
  isReady();
  const cpuBefore = [source.cpuMs, destination.cpuMs] as const;
  const bytesBefore = loopbackBytes();
  const startMs = nowMs();
  await from.send(uri);
  await Promise.all([from.ended(), to.ended()]);
  const wallMs = nowMs() - startMs;
  return {
    totalMs: (await from.figures()).totalMs,
    wallMs,
    sourceCpuMs: source.cpuMs - cpuBefore[0],
    destinationCpuMs: destination.cpuMs - cpuBefore[1],
    wireBytes: loopbackBytes() - bytesBefore,
  };
}

/** A QEMU whose guest's memory is a file and which has no devices that are not on the board. */
class Qemu {
  readonly #process: ChildProcess;
  readonly #socketPath: string;
  #complaints = "";
  #monitor: Qmp | null = null;

  constructor(
    memoryPath: string,
    {
      sizeBytes,
      socketPath,
      isIncoming = false,
    }: { sizeBytes: number; socketPath: string; isIncoming?: boolean },
  ) {
    this.#socketPath = socketPath;
    this.#process = spawn(
      "qemu-system-x86_64",
      [
        ...["-S", "-accel", "tcg", "-machine", "pc,memory-backend=ram"],
        ...["-m", `${sizeBytes / MIB}M`],
        ...[
          "-object",
          `memory-backend-file,id=ram,size=${sizeBytes},mem-path=${memoryPath},share=on`,
        ],
        ...["-nodefaults", "-no-user-config", "-display", "none", "-serial", "none"],
        ...["-qmp", `unix:${socketPath},server=on,wait=off`],
        ...(isIncoming ? ["-incoming", "defer"] : []),
      ],
      { stdio: ["ignore", "ignore", "pipe"], killSignal: "SIGKILL" },
    );
    this.#process.on("error", (error) => {
      this.#complaints += error.message;
    });
    this.#process.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#complaints += text;
    });
  }

  get cpuMs(): number {
    return cpuMsOf(must(this.#process.pid, "QEMU was started"));
  }

  /** QEMU makes its socket a moment before it listens there. */
  async connect(): Promise<Qmp> {
    const deadline = new Deadline(START_LIMIT_MS);
    for (;;) {
      try {
        this.#monitor = await Qmp.connect(this.#socketPath);
        return this.#monitor;
      } catch (error) {
        const { pid, exitCode, signalCode } = this.#process;
        const isGone = pid === undefined || exitCode !== null || signalCode !== null;
        if (isGone || deadline.passed) {
          throw new Error(`Cannot start QEMU: ${this.#complaints}`, { cause: error });
        }
        await sleep(10);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { pid, exitCode, signalCode } = this.#process;
    this.#monitor?.close();
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const ended = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await ended;
  }
}
