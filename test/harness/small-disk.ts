import { spawnSync } from "node:child_process";
import { mkdtempSync, rmdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A file system in memory with little room. Needs the right to mount, as root in a container has. */
export class SmallDisk implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "multifd-disk-"));

  /** Throws what `mount` says when it may not. */
  constructor(sizeBytes: number) {
    try {
      run("mount", ["-t", "tmpfs", "-o", `size=${sizeBytes}`, "multifd-test", this.path]);
    } catch (error) {
      rmdirSync(this.path);
      throw error;
    }
  }

  /** From now on nobody can write here, not even root. */
  protect(): void {
    run("mount", ["-o", "remount,ro", this.path]);
  }

  [Symbol.dispose](): void {
    // A detached mount goes when its last file is closed.
    run("umount", ["--lazy", this.path]);
    rmdirSync(this.path);
  }
}

/** Why this user cannot have small disks, or null when all is well. */
export function whyNoSmallDisk(): string | null {
  try {
    new SmallDisk(65_536)[Symbol.dispose]();
    return null;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

function run(command: string, args: readonly string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: "utf8" });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(`Cannot ${command}: ${stderr.trim()}`);
}
