import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { CHARACTER_DEVICE_MODE, FOLDER_MODE, PROGRAM_MODE, writeArchive } from "../archive.ts";
import { requirePrograms } from "../programs.ts";

const SOURCE = fileURLToPath(new URL("work.c", import.meta.url));
const COMPILE_LIMIT_MS = 60_000;

/** All of the user space but the program that works. */
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
exec /bin/work
`;

/** What a guest that works is booted from. `await using` removes it. */
export class GuestImage implements AsyncDisposable {
  readonly kernelPath: string;
  readonly initramfsPath: string;
  readonly #folder: string;

  private constructor(kernelPath: string, folder: string) {
    this.kernelPath = kernelPath;
    this.initramfsPath = join(folder, "initramfs.cpio");
    this.#folder = folder;
  }

  /** Compiles the program and packs it with a shell and the kernel of this machine. */
  static async build(place = tmpdir()): Promise<GuestImage> {
    const { busyboxPath, kernelPath } = requirePrograms();
    const folder = await mkdtemp(join(place, "multifd-guest-"));
    const image = new GuestImage(kernelPath, folder);
    try {
      const archive = writeArchive([
        ...["bin", "dev", "proc"].map((path) => ({ path, mode: FOLDER_MODE })),
        { path: "dev/console", mode: CHARACTER_DEVICE_MODE, device: [5, 1] },
        { path: "bin/busybox", mode: PROGRAM_MODE, bytes: await readFile(busyboxPath) },
        { path: "bin/work", mode: PROGRAM_MODE, bytes: await compile(join(folder, "work")) },
        { path: "init", mode: PROGRAM_MODE, bytes: Buffer.from(INIT) },
      ]);
      await writeFile(image.initramfsPath, archive);
      return image;
    } catch (error) {
      await image[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true });
  }
}

async function compile(path: string): Promise<Uint8Array> {
  const flags = ["-static", "-s", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"];
  await promisify(execFile)("gcc", [...flags, "-o", path, SOURCE], { timeout: COMPILE_LIMIT_MS });
  return await readFile(path);
}
