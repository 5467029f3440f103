import { readFileSync, readlinkSync } from "node:fs";
import { resolve } from "node:path";

/** What `/proc` tells of QEMU's process. Each is undefined where this user may not look. */
export interface QemuProcess {
  readonly pid: number;
  readonly userId: number;
  readonly groupId: number;
}

/**
 * The process to which a thread belongs. QMP names threads only, and the peer of a unix socket is
 * not told to Node. Undefined also for a QEMU that counts its threads in another PID namespace.
 */
export function processOfThread(threadId: number): QemuProcess | undefined {
  const status = textOf(`/proc/${threadId}/status`);
  const numberIn = (name: string, column = 0): number =>
    Number(new RegExp(`^${name}:\\s+(.*)$`, "m").exec(status ?? "")?.[1]?.split(/\s+/)[column]);
  const pid = numberIn("Tgid");
  // The second column is the effective one.
  const [userId, groupId] = [numberIn("Uid", 1), numberIn("Gid", 1)];
  const isWhole = [pid, userId, groupId].every(Number.isInteger);
  return isWhole && isQemu(pid) ? { pid, userId, groupId } : undefined;
}

/** Guards against a thread of the same number in this namespace that is somebody else's. */
function isQemu(pid: number): boolean {
  return /qemu|kvm/.test(textOf(`/proc/${pid}/cmdline`) ?? "");
}

/** A path as QEMU means it, which is relative to where it was started. */
export function pathOfProcess(pid: number | undefined, path: string): string {
  if (path.startsWith("/") || pid === undefined) return path;
  try {
    return resolve(readlinkSync(`/proc/${pid}/cwd`), path);
  } catch {
    return path;
  }
}

/** Whether a process maps the file of this inode, shared; undefined where that cannot be known. */
export function mapsShared(pid: number, inode: bigint): boolean | undefined {
  const maps = textOf(`/proc/${pid}/maps`);
  if (maps === undefined) return undefined;
  // Such as `7f0000000000-7f0010000000 rw-s 00000000 00:1a 1042   /dev/shm/guest.ram`.
  return maps.split("\n").some((line) => {
    const [, mode, , , mapped] = line.split(/\s+/);
    return mode?.endsWith("s") === true && mapped === String(inode);
  });
}

function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
