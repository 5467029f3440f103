import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { must } from "../../base/assert.ts";
import { Deadline, nowMs, within } from "../../base/clock.ts";
import { MIB } from "../../base/units.ts";
import { Qmp } from "../../hosts/qemu/qmp.ts";
import { BEAT_LINE, buildInitramfs, GUEST_MIB_MIN, READY_LINE } from "./initramfs.ts";
import { type Programs, requirePrograms } from "./programs.ts";

/** Emulated, a guest is ready in 5 to 15 s on an idle machine; this one may be busy. */
const BOOT_LIMIT_MS = 120_000;
/** Between two beats, which are a fraction of a second apart. */
const BEAT_LIMIT_MS = 60_000;
const QUIT_LIMIT_MS = 10_000;

/** Lines of the serial console (and of QEMU's own complaints) that an error shows. */
const TAIL_LINES = 20;

/** What `sun_path` of a unix socket holds without its final NUL. */
const SOCKET_PATH_BYTES_MAX = 107;

export interface BootRequest {
  /** Where the guest's RAM is made; nothing may be there yet. */
  readonly ramPath: string;
  /** A whole number of MiB. */
  readonly sizeBytes: number;
  /** Where the initramfs and a socket live while the guest does. */
  readonly folder: string;
  /** Kills the guest at any moment. */
  readonly signal?: AbortSignal;
}

/**
 * Boots Linux under QEMU with its RAM in a shared file, and resolves when the guest has filled its
 * memory and works on. On failure no process and no file is left.
 */
export async function bootLinux(request: BootRequest): Promise<LinuxGuest> {
  const programs = requirePrograms();
  const { ramPath, sizeBytes, folder } = request;
  if (sizeBytes % MIB !== 0 || sizeBytes < GUEST_MIB_MIN * MIB) {
    const wanted = `whole MiB, at least ${GUEST_MIB_MIN}`;
    throw new RangeError(`Cannot boot Linux in ${sizeBytes} bytes: wanted ${wanted}`);
  }
  if (/[,\n]/.test(ramPath)) throw new RangeError(`Cannot use "${ramPath}": QEMU splits at commas`);
  if (existsSync(ramPath))
    throw new RangeError(`Cannot make "${ramPath}": it exists; remove it first`);
  const ownFolder = await mkdtemp(join(folder, "linux-guest-"));
  try {
    return await start(request, programs, ownFolder);
  } catch (failure) {
    await rm(ownFolder, { recursive: true, force: true });
    await rm(ramPath, { force: true });
    throw failure;
  }
}

async function start(
  { ramPath, sizeBytes, signal }: BootRequest,
  programs: Programs,
  folder: string,
): Promise<LinuxGuest> {
  const socketPath = join(folder, "qmp");
  if (Buffer.byteLength(socketPath) > SOCKET_PATH_BYTES_MAX) {
    throw new RangeError(`Cannot use folder "${folder}": a socket's path in it is too long`);
  }
  const initramfsPath = await buildInitramfs(folder, programs.busyboxPath);
  const qemu = spawn(
    programs.qemuPath,
    [
      ...["-accel", "tcg", "-machine", "memory-backend=ram", "-m", `${sizeBytes / MIB}M`],
      ...["-object", `memory-backend-file,id=ram,size=${sizeBytes},mem-path=${ramPath},share=on`],
      ...["-kernel", programs.kernelPath, "-initrd", initramfsPath],
      // A guest that panics ends QEMU at once instead of starting over.
      ...["-append", "console=ttyS0 panic=-1", "-no-reboot"],
      ...["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"],
      ...["-qmp", `unix:${socketPath},server=on,wait=off`],
    ],
    { stdio: ["ignore", "pipe", "pipe"], killSignal: "SIGKILL", ...(signal && { signal }) },
  );
  const guest = new LinuxGuest(qemu, { ramPath, folder });
  try {
    await guest.waitUntilReady(socketPath);
    return guest;
  } catch (failure) {
    await guest.quit();
    throw failure;
  }
}

/** A Linux that runs in a QEMU of its own. `await using` ends it in every case. */
export class LinuxGuest {
  readonly ramPath: string;
  readonly #startedMs = nowMs();
  readonly #qemu: ChildProcess;
  readonly #folder: string;
  readonly #ended: Promise<void>;
  readonly #tail: string[] = [];
  #monitor: Qmp | undefined;
  #readyMs: number | undefined;
  #beats = 0;
  #isStopped = false;
  #hasEnded = false;
  #changed = Promise.withResolvers<void>();

  constructor(qemu: ChildProcess, paths: { ramPath: string; folder: string }) {
    this.ramPath = paths.ramPath;
    this.#folder = paths.folder;
    this.#qemu = qemu;
    this.#ended = this.#watchEnd();
    for (const input of [qemu.stdout, qemu.stderr]) {
      if (input) createInterface({ input }).on("line", (line) => this.#hear(line));
    }
  }

  /** Of QEMU, to find it in `/proc`. */
  get processId(): number {
    return must(this.#qemu.pid, "a QEMU that booted has a number");
  }

  /** Times that the guest has rewritten some of its memory, as far as it has said. */
  get beats(): number {
    return this.#beats;
  }

  /** From the start of QEMU until the guest was ready. */
  get bootMs(): number {
    return (this.#readyMs ?? nowMs()) - this.#startedMs;
  }

  async waitUntilReady(socketPath: string): Promise<void> {
    await this.#waitFor("ready", BOOT_LIMIT_MS, () => this.#readyMs !== undefined);
    this.#monitor = await Qmp.connect(socketPath);
  }

  /** Waits as long as the guest keeps beating. */
  async waitForBeat(beat: number): Promise<void> {
    while (this.#beats < beat) {
      const next = this.#beats + 1;
      await this.#waitFor(`beat ${next}`, BEAT_LIMIT_MS, () => this.#beats >= next);
    }
  }

  /** On return the guest's processor stands still and so does its RAM. */
  async stop(): Promise<void> {
    if (this.#monitor === undefined) throw new Error("Cannot stop the guest: it has ended");
    await this.#monitor.execute("stop");
    const status = (await this.#monitor.execute("query-status")) as { status: string };
    if (status.status !== "paused") {
      throw new Error(`Cannot stop the guest: its status is "${status.status}"`);
    }
    this.#isStopped = true;
  }

  /**
   * Ends QEMU and removes its files. The RAM file stays where the guest was stopped before;
   * otherwise it was torn off in the middle of a write and is removed too.
   */
  async quit(): Promise<void> {
    // One that cannot be asked, or does not obey, is killed: what counts is that it ends.
    const kill = () => this.#qemu.kill("SIGKILL");
    const timer = setTimeout(kill, QUIT_LIMIT_MS);
    if (this.#monitor === undefined) kill();
    else await this.#monitor.execute("quit").catch(kill);
    await this.#ended;
    clearTimeout(timer);
    this.#monitor?.close();
    this.#monitor = undefined;
    await rm(this.#folder, { recursive: true, force: true });
    if (!this.#isStopped) await rm(this.ramPath, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.quit();
  }

  /** A test that is itself ended early leaves no QEMU behind: it is killed on exit. */
  async #watchEnd(): Promise<void> {
    const kill = () => this.#qemu.kill("SIGKILL");
    process.once("exit", kill);
    this.#qemu.on("error", (error) => this.#hear(`QEMU: ${error.message}`));
    await new Promise((resolve) => this.#qemu.once("close", resolve));
    process.removeListener("exit", kill);
    this.#hasEnded = true;
    this.#wake();
  }

  #hear(line: string): void {
    this.#tail.push(line);
    if (this.#tail.length > TAIL_LINES) this.#tail.shift();
    if (line.startsWith(READY_LINE)) this.#readyMs ??= nowMs();
    if (line.startsWith(BEAT_LINE)) this.#beats = Number(line.slice(BEAT_LINE.length));
    this.#wake();
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  async #waitFor(what: string, limitMs: number, isMet: () => boolean): Promise<void> {
    const deadline = new Deadline(limitMs);
    const late = () => new Error(`Cannot wait for ${what}: ${limitMs} ms have gone by${this.#log}`);
    while (!isMet()) {
      if (this.#hasEnded) throw new Error(`Cannot wait for ${what}: QEMU has ended${this.#log}`);
      await within(deadline.leftMs, this.#changed.promise, late);
    }
  }

  get #log(): string {
    return `; its last lines are\n${this.#tail.map((line) => `  ${line}`).join("\n")}`;
  }
}
