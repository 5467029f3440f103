import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { assert, must } from "../../base/assert.ts";
import { Deadline, nowMs } from "../../base/clock.ts";
import { MIB } from "../../base/units.ts";
import { MigrationStatus } from "../../hosts/qemu/migration-status.ts";
import { Qmp } from "../../hosts/qemu/qmp.ts";
import { cpuMsOf, loopbackBytes } from "./meters.ts";
import type { Move, Sample } from "./sample.ts";

const START_LIMIT_MS = 60_000;
const MOVE_LIMIT_MS = 120_000;

/** As good as no limit; zero would mean that to newer versions only. */
const BANDWIDTH_MAX = 2 ** 50;
/** The largest that QEMU takes: it stops iterating as soon as it may. */
const DOWNTIME_MS_MAX = 2_000_000;

/** Has two QEMUs, neither of which ever runs its guest, move the memory. */
export async function moveWithQemu(
  move: Move,
  folder: string,
  isReady: () => void,
): Promise<Sample> {
  assert(move.compression !== "auto", "QEMU does not choose");
  await using source = new Qemu(move.sourcePath, { ...move, socketPath: `${folder}/source.qmp` });
  await using destination = new Qemu(move.destinationPath, {
    ...move,
    socketPath: `${folder}/destination.qmp`,
    isIncoming: true,
  });
  await Promise.all([source.prepare(move), destination.prepare(move)]);
  const uri = await destination.listen();
  isReady();
  const cpuBefore = [source.cpuMs, destination.cpuMs] as const;
  const bytesBefore = loopbackBytes();
  const startMs = nowMs();
  await source.monitor.execute("migrate", { uri });
  await Promise.all([source.ended(), destination.ended()]);
  const wallMs = nowMs() - startMs;
  return {
    totalMs: await source.totalMs(),
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
  #status: MigrationStatus | null = null;

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

  get monitor(): Qmp {
    return must(this.#monitor, "QEMU is asked after it was prepared");
  }

  get cpuMs(): number {
    return cpuMsOf(must(this.#process.pid, "QEMU was started"));
  }

  /** Sets what both ends must have alike, and lifts every limit. */
  async prepare({ channels, compression }: Move): Promise<void> {
    this.#monitor = await this.#connect();
    this.#status = new MigrationStatus(this.#monitor);
    await this.monitor.execute("migrate-set-capabilities", {
      capabilities: ["multifd", "events"].map((capability) => ({ capability, state: true })),
    });
    await this.monitor.execute("migrate-set-parameters", {
      "multifd-channels": channels,
      "multifd-compression": compression,
      "max-bandwidth": BANDWIDTH_MAX,
      "downtime-limit": DOWNTIME_MS_MAX,
    });
  }

  /** Returns the address at which it waits for the source. */
  async listen(): Promise<string> {
    await this.monitor.execute("migrate-incoming", { uri: "tcp:127.0.0.1:0" });
    const status = (await this.monitor.execute("query-migrate")) as {
      readonly "socket-address"?: readonly { readonly host: string; readonly port: string }[];
    };
    const { host, port } = must(status["socket-address"]?.[0], "QEMU says where it listens");
    return `tcp:${host}:${port}`;
  }

  /** Without any polling that would cost time. */
  async ended(): Promise<void> {
    await must(this.#status, "QEMU was prepared").reach(["completed"], MOVE_LIMIT_MS);
  }

  async totalMs(): Promise<number> {
    const status = await this.monitor.execute("query-migrate");
    return (status as { readonly "total-time": number })["total-time"];
  }

  /** QEMU makes its socket a moment before it listens there. */
  async #connect(): Promise<Qmp> {
    const deadline = new Deadline(START_LIMIT_MS);
    for (;;) {
      try {
        return await Qmp.connect(this.#socketPath);
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
