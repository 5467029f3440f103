import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { assert, must } from "../../../base/assert.ts";
import { Deadline } from "../../../base/clock.ts";
import { MIB } from "../../../base/units.ts";
import { Qmp } from "../../../hosts/qemu/qmp.ts";
import { requirePrograms } from "../programs.ts";
import { MEMORY_FOLDER } from "../requirements.ts";
import { readSaid } from "./beats.ts";
import type { GuestImage } from "./image.ts";
import { Transcript } from "./transcript.ts";

/** Emulated, the guest is ready after 3 s on an idle machine; this one may be busy. */
const BOOT_LIMIT_MS = 120_000;
/** Between two beats, which are a tenth of a second apart. */
const BEAT_LIMIT_MS = 30_000;
const START_LIMIT_MS = 30_000;
const START_PAUSE_MS = 10;

/** What the guest does; what is left out is as `work.c` says. */
export interface GuestWork {
  readonly sizeMib?: number;
  /** 0: it rewrites nothing, and only beats and checks. */
  readonly rateMib?: number;
  readonly usedMib?: number;
  /** How many of a hundred pages do not compress. */
  readonly noisePercent?: number;
  readonly beatMs?: number;
}

export interface QemuRequest {
  readonly image: GuestImage;
  readonly memoryMib?: number;
  /** NUMA nodes, each with a backend and a file of its own; 0: RAM as QEMU has it by itself. */
  readonly nodes?: 0 | 1 | 2;
  readonly work?: GuestWork;
  /** Waits for a guest instead of booting one. */
  readonly isIncoming?: boolean;
  /** Does not run the guest before it is told to. */
  readonly isStopped?: boolean;
  /** Its RAM is in the files, but not shared: nobody else sees what the guest writes. */
  readonly isPrivate?: boolean;
  /** Where the files of its RAM are; null: with its sockets, in memory. */
  readonly ramFolder?: string | null;
  /** More words for QEMU's command line. */
  readonly args?: readonly string[];
}

/** Small, so that moving it is quick; the kernel needs some 60 MiB. */
const MEMORY_MIB = 192;

export const IDLE: GuestWork = { rateMib: 0, sizeMib: 16 };
/** A sweep over all of it takes some three seconds. */
export const BUSY: GuestWork = { rateMib: 20, sizeMib: 64 };

/**
 * A QEMU with RAM in shared files, made for being migrated. `await using` kills it in every case
 * and removes its files.
 */
export class Qemu implements AsyncDisposable {
  /** For the engine: one client at a time. */
  readonly qmpPath: string;
  readonly ramPaths: readonly string[];
  readonly serial: Transcript;
  /** Resolves with the exit status (null: it was killed) when QEMU has ended. */
  readonly ended: Promise<number | null>;
  readonly #folder: string;
  readonly #process: ChildProcess;
  #monitor: Qmp | null = null;
  #complaints = "";

  private constructor(folder: string, request: QemuRequest) {
    this.#folder = folder;
    this.qmpPath = join(folder, "qmp");
    this.ramPaths = ramPathsIn(folder, request);
    this.#process = spawn(requirePrograms().qemuPath, argumentsOf(folder, request), {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const { stdout, stderr } = this.#process;
    assert(stdout !== null && stderr !== null, "both outputs are pipes");
    this.serial = new Transcript(stdout);
    stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#complaints += text;
    });
    this.ended = this.#watchEnd();
  }

  /** Resolves when QEMU's monitor answers; the guest may not even have begun to boot. */
  static async start(request: QemuRequest): Promise<Qemu> {
    const folder = await mkdtemp(join(MEMORY_FOLDER, "multifd-qemu-"));
    const qemu = new Qemu(folder, request);
    try {
      qemu.#monitor = await qemu.#connect();
      return qemu;
    } catch (error) {
      await qemu[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Boots a guest and resolves when it works. */
  static async boot(request: QemuRequest): Promise<Qemu> {
    const qemu = await Qemu.start(request);
    try {
      await qemu.serial.waitFor("the guest", BOOT_LIMIT_MS, (text) => readSaid(text).isReady);
      await qemu.waitForBeats(1);
      return qemu;
    } catch (error) {
      await qemu[Symbol.asyncDispose]();
      throw error;
    }
  }

  get processId(): number {
    return must(this.#process.pid, "QEMU was started");
  }

  get hasEnded(): boolean {
    return this.#process.exitCode !== null || this.#process.signalCode !== null;
  }

  /** What QEMU itself has said. */
  get complaints(): string {
    return this.#complaints;
  }

  /** For tests: it works beside the one that the engine uses. */
  get monitor(): Qmp {
    return must(this.#monitor, "QEMU is asked after it was started");
  }

  /** QEMU's word for what the guest does: "running", "paused", "inmigrate", "postmigrate". */
  async status(): Promise<string> {
    const answer = (await this.monitor.execute("query-status")) as { readonly status: string };
    return answer.status;
  }

  async waitForStatus(wanted: string): Promise<void> {
    const deadline = new Deadline(START_LIMIT_MS);
    for (let found = await this.status(); found !== wanted; found = await this.status()) {
      if (deadline.passed) throw new Error(`QEMU is "${found}" and does not become "${wanted}"`);
      await pause(START_PAUSE_MS);
    }
  }

  async threadIds(): Promise<number[]> {
    const answer = await this.monitor.execute("query-cpus-fast");
    return (answer as { readonly "thread-id": number }[]).map((cpu) => cpu["thread-id"]);
  }

  /** So many more than there are. */
  async waitForBeats(count: number): Promise<void> {
    await this.#waitForMore("beats", count, BEAT_LIMIT_MS);
  }

  /** So many times all of its memory is found to be as it should. */
  async waitForSweeps(count: number): Promise<void> {
    await this.#waitForMore("sweeps", count, BOOT_LIMIT_MS);
  }

  kill(signal: NodeJS.Signals = "SIGKILL"): void {
    this.#process.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#monitor?.close();
    this.kill();
    await this.ended;
    for (const path of [this.#folder, ...this.ramPaths]) {
      await rm(path, { recursive: true, force: true });
    }
  }

  /** One after the other, each with its own limit: a slow machine is no failure, a standstill is. */
  async #waitForMore(what: "beats" | "sweeps", count: number, limitMs: number): Promise<void> {
    const first = readSaid(this.serial.text)[what].length;
    for (let more = 1; more <= count; more += 1) {
      const isMet = (text: string) => readSaid(text)[what].length >= first + more;
      await this.serial.waitFor(`${more} more ${what}`, limitMs, isMet);
    }
  }

  /** A test that is itself ended early leaves no QEMU and no RAM behind: they go on exit. */
  async #watchEnd(): Promise<number | null> {
    const kill = () => {
      this.kill();
      for (const path of [this.#folder, ...this.ramPaths]) {
        rmSync(path, { recursive: true, force: true });
      }
    };
    process.once("exit", kill);
    this.#process.once("error", (error) => {
      this.#complaints += error.message;
    });
    const [status] = (await once(this.#process, "close")) as [number | null];
    process.removeListener("exit", kill);
    return status;
  }

  /** QEMU makes its socket a moment before it listens there. */
  async #connect(): Promise<Qmp> {
    const deadline = new Deadline(START_LIMIT_MS);
    let hasEnded = false;
    const ended = this.ended.then(() => {
      hasEnded = true;
    });
    for (;;) {
      try {
        return await Qmp.connect(join(this.#folder, "watch"));
      } catch (cause) {
        if (hasEnded || deadline.passed) {
          throw new Error(`Cannot start QEMU: ${this.#complaints}`, { cause });
        }
        await Promise.race([pause(START_PAUSE_MS), ended]);
      }
    }
  }
}

/** Both QEMUs of a migration must have the same devices, so it is all in one place. */
function argumentsOf(folder: string, request: QemuRequest): string[] {
  const { image, isIncoming = false, isStopped = false, work = {}, args = [] } = request;
  const monitor = (name: string) => ["-qmp", `unix:${join(folder, name)},server=on,wait=off`];
  return [
    ...["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"],
    ...memoryArguments(folder, request),
    ...["-kernel", image.kernelPath, "-initrd", image.initramfsPath],
    ...["-append", commandLine(work), "-no-reboot", "-serial", "stdio"],
    ...monitor("qmp"),
    ...monitor("watch"),
    ...(isIncoming ? ["-incoming", "defer"] : []),
    ...(isStopped ? ["-S"] : []),
    ...args,
  ];
}

function memoryArguments(folder: string, request: QemuRequest): string[] {
  const paths = ramPathsIn(folder, request);
  const totalMib = request.memoryMib ?? MEMORY_MIB;
  const amount = ["-m", `${totalMib * 1024}K`];
  if (paths.length === 0) return amount;
  const bytes = (totalMib * MIB) / paths.length;
  const share = request.isPrivate === true ? "off" : "on";
  const backends = paths.flatMap((path, index) => [
    "-object",
    `memory-backend-file,id=ram${index},size=${bytes},mem-path=${path},share=${share}`,
  ]);
  const uses =
    paths.length === 1
      ? ["-machine", "pc,memory-backend=ram0"]
      : ["-machine", "pc", ...paths.flatMap((_, node) => ["-numa", nodeArgument(node)])];
  return [...amount, ...backends, ...uses];
}

/** The one processor belongs to the first node. */
function nodeArgument(node: number): string {
  return `node,nodeid=${node},${node === 0 ? "cpus=0," : ""}memdev=ram${node}`;
}

function ramPathsIn(folder: string, { nodes = 1, ramFolder }: QemuRequest): string[] {
  const place =
    ramFolder == null ? join(folder, "ram") : join(ramFolder, `${basename(folder)}-ram`);
  return Array.from({ length: nodes }, (_, index) => `${place}${index}`);
}

function commandLine({ sizeMib, rateMib, usedMib, noisePercent, beatMs }: GuestWork): string {
  const settings = {
    ...{ size_mib: sizeMib, rate_mib: rateMib, used_mib: usedMib },
    ...{ noise_pct: noisePercent, beat_ms: beatMs },
  };
  return [
    // Nothing but what the guest says may come between its beats; one that panics ends QEMU.
    ...["console=ttyS0", "quiet", "loglevel=1", "panic=-1", "mitigations=off"],
    ...Object.entries(settings).flatMap(([name, value]) =>
      value === undefined ? [] : [`multifd.${name}=${value}`],
    ),
  ].join(" ");
}
