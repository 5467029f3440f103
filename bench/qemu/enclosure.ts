import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync } from "node:fs";
import { assert } from "../../base/assert.ts";

/** Set in the environment of whoever runs inside. */
const MARK = "MULTIFD_BENCH_ENCLOSED";

/** Guest memory lives where a hypervisor puts it, not on a disk. */
const MEMORY_FOLDER = "/dev/shm";

/**
 * A world of its own for a comparison: processes, network and mounts that nobody else sees. Its
 * loopback interface counts the bytes of a migration and no others, its memory file systems are
 * empty and of a known kind, and when its first process ends, however it ends, the kernel removes
 * everything with it: processes, mounts and the memory of their files.
 */
export const isEnclosed = process.env[MARK] !== undefined;

/** Why nothing can be enclosed here, or null. */
export function enclosureProblem(): string | null {
  const attempt = `ip link set lo up && mount -t tmpfs tmpfs ${MEMORY_FOLDER}`;
  const words = [...unshareWords(), "sh", "-c", attempt];
  const { error, status, stderr } = spawnSync("unshare", words, { encoding: "utf8" });
  if (error !== undefined) return error.message;
  return status === 0 ? null : stderr.trim();
}

function unshareWords(): string[] {
  const isRoot = process.getuid?.() === 0;
  return [
    ...(isRoot ? [] : ["--user", "--map-root-user"]),
    ...["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"],
  ];
}

/** Runs this program again, enclosed. Returns its exit status, 1 where a signal ended it. */
export async function runEnclosed(program: string, words: readonly string[]): Promise<number> {
  assert(!isEnclosed, "one enclosure is enough");
  const child = spawn("unshare", [...unshareWords(), process.execPath, program, ...words], {
    stdio: "inherit",
    env: { ...process.env, [MARK]: "1" },
  });
  // Nothing milder has an effect: unshare blocks it while it waits, and the first process of a
  // namespace does not hear it. Killed, unshare takes all that is enclosed along.
  const end = (): void => void child.kill("SIGKILL");
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, end);
  process.once("exit", end);
  const [status] = (await once(child, "exit")) as [number | null];
  return status ?? 1;
}

/** The kinds of memory that are compared. A folder of each is there, empty, once furnished. */
export const MEMORY_KINDS = {
  small: { meaning: "4 KiB pages", folder: `${MEMORY_FOLDER}`, huge: "never" },
  huge: { meaning: "huge pages", folder: `${MEMORY_FOLDER}/huge`, huge: "always" },
} as const;
export type MemoryKind = keyof typeof MEMORY_KINDS;

/** To be called once, inside: switches the network on and mounts memory of every kind. */
export function furnish(): void {
  assert(isEnclosed, "nobody mounts over the memory of others");
  execFileSync("ip", ["link", "set", "lo", "up"]);
  for (const { folder, huge } of Object.values(MEMORY_KINDS)) {
    mkdirSync(folder, { recursive: true });
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=90%,huge=${huge}`, "tmpfs", folder]);
  }
}
