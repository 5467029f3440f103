import { constants } from "node:fs";
import { mkdir, readdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { Deadline } from "../../base/clock.ts";
import { errnoOf } from "../../base/errors.ts";
import type { CpuCgroup } from "./cgroups.ts";
import { cpusOfMax, cpusOfQuota, type QuotaFigures } from "./quota-figures.ts";
import type { QuotaOwner } from "./quota-owner.ts";

/**
 * What the name of one of our cgroups tells. It stands where its thread was found, so where it has
 * to go back to is the parent: with the name that is all that a later process needs to undo it,
 * and it lasts exactly as long as there is something to undo.
 */
export interface GroupName {
  readonly owner: QuotaOwner;
  readonly threadId: number;
  /** We enabled the `cpu` controller for the children of the parent, and it goes with the last. */
  readonly isController: boolean;
}

/** A cgroup of ours. */
export interface QuotaGroup {
  readonly version: 1 | 2;
  readonly folder: string;
  readonly isController: boolean;
}

const NAME = /^multifd-quota-(\d+)-(\d+)-(\d+)-thread-(\d+)(-cpu)?$/;

/** Threads that end leave a cgroup a moment after they were moved or gone. */
const EMPTY_LIMIT_MS = 2_000;
const EMPTY_PAUSE_MS = 5;

export function formatGroupName({ owner, threadId, isController }: GroupName): string {
  const { namespace, processId, startTicks } = owner;
  const suffix = isController ? "-cpu" : "";
  return `multifd-quota-${namespace}-${processId}-${startTicks}-thread-${threadId}${suffix}`;
}

/** Null: it is not one of ours. */
export function parseGroupName(name: string): GroupName | null {
  const found = NAME.exec(name);
  if (found === null) return null;
  const [, namespace, processId, startTicks, threadId, suffix] = found;
  return {
    owner: {
      namespace: Number(namespace),
      processId: Number(processId),
      startTicks: Number(startTicks),
    },
    threadId: Number(threadId),
    isController: suffix !== undefined,
  };
}

/** Makes a cgroup without a limit below the one where a thread was found, and leaves it empty. */
export async function createGroup(
  found: CpuCgroup,
  { owner, threadId }: Omit<GroupName, "isController">,
): Promise<QuotaGroup> {
  const { version, folder: parent } = found;
  const isController = version === 2 && (await isOursToEnable(parent));
  const folder = join(parent, formatGroupName({ owner, threadId, isController }));
  await mkdir(folder);
  const group = { version, folder, isController };
  if (version === 1) return group;
  try {
    // One that holds threads rather than processes may only have children of that kind.
    await write(join(folder, "cgroup.type"), "threaded");
    if (isController) await write(join(parent, "cgroup.subtree_control"), "+cpu");
    return group;
  } catch (error) {
    await removeGroup(group);
    throw error;
  }
}

/** Says how long what is in the group may run; null: without a limit. */
export async function limitGroup(group: QuotaGroup, figures: QuotaFigures | null): Promise<void> {
  const { version, folder } = group;
  if (version === 2) {
    const text = figures === null ? "max" : `${figures.quotaUs} ${figures.periodUs}`;
    return await write(join(folder, "cpu.max"), text);
  }
  // The two are checked against the parent's one by one: without a quota any period will do.
  await write(join(folder, "cpu.cfs_quota_us"), "-1");
  if (figures === null) return;
  await write(join(folder, "cpu.cfs_period_us"), `${figures.periodUs}`);
  await write(join(folder, "cpu.cfs_quota_us"), `${figures.quotaUs}`);
}

/** A thread that has ended meanwhile is no problem. */
export async function moveThread(
  { version, folder }: Pick<QuotaGroup, "version" | "folder">,
  threadId: number,
): Promise<void> {
  const file = join(folder, threadsFile(version));
  await unlessGone(() => write(file, `${threadId}`));
}

/** Gives all threads back to the cgroup above and removes this one. It may be gone already. */
export async function removeGroup(group: QuotaGroup): Promise<void> {
  const { version, folder, isController } = group;
  const deadline = new Deadline(EMPTY_LIMIT_MS);
  const parent = dirname(folder);
  while (!(await isRemoved(group))) {
    // Whatever its threads started since is in it, too.
    const text =
      (await unlessGone(() => readFile(join(folder, threadsFile(version)), "utf8"))) ?? "";
    for (const threadId of text.split("\n").filter((line) => line !== "")) {
      await moveThread({ version, folder: parent }, Number(threadId));
    }
    if (await isRemoved(group)) break;
    if (deadline.passed) throw new Error(`cgroup "${folder}" does not become empty`);
    await pause(EMPTY_PAUSE_MS);
  }
  if (isController) await disableController(parent);
}

/** How many processors the cgroups above leave to a thread, as far up as they can be seen. */
export async function ceilingCpusOf({ version, folder, mountPoint }: CpuCgroup): Promise<number> {
  let cpus = await ownLimitOf(version, folder);
  for (let at = folder; at !== mountPoint; ) {
    at = dirname(at);
    cpus = Math.min(cpus, await ownLimitOf(version, at));
  }
  return cpus;
}

async function ownLimitOf(version: 1 | 2, folder: string): Promise<number> {
  const read = (name: string) => readFile(join(folder, name), "utf8");
  // Absent where no controller is enabled, and then nothing is limited.
  if (version === 2) return cpusOfMax((await unlessGone(() => read("cpu.max"))) ?? "max");
  return cpusOfQuota(await read("cpu.cfs_quota_us"), await read("cpu.cfs_period_us"));
}

/** Whether `cpu` has to be enabled for us, or was for another of us, who may leave before. */
async function isOursToEnable(parent: string): Promise<boolean> {
  const read = async (name: string) =>
    (await readFile(join(parent, name), "utf8")).trim().split(" ");
  if (!(await read("cgroup.controllers")).includes("cpu")) {
    throw new Error(
      `cgroup "${parent}" is not given the cpu controller; start QEMU in one that is, such as by "systemd-run --scope --property=Delegate=cpu"`,
    );
  }
  if (!(await read("cgroup.subtree_control")).includes("cpu")) return true;
  return (await childrenOf(parent)).some((name) => parseGroupName(name)?.isController === true);
}

/** Somebody else's children may rely on it by now, and then it stays. */
async function disableController(parent: string): Promise<void> {
  if ((await childrenOf(parent)).length > 0) return;
  await unlessGone(() => write(join(parent, "cgroup.subtree_control"), "-cpu"));
}

async function childrenOf(folder: string): Promise<string[]> {
  const entries = (await unlessGone(() => readdir(folder, { withFileTypes: true }))) ?? [];
  return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
}

async function isRemoved({ folder }: QuotaGroup): Promise<boolean> {
  try {
    await unlessGone(() => rmdir(folder));
    return true;
  } catch (error) {
    if (errnoOf(error) === "EBUSY") return false;
    throw error;
  }
}

function threadsFile(version: 1 | 2): string {
  return version === 1 ? "tasks" : "cgroup.threads";
}

/** Runs a step on something that may end at any moment: null when it has. */
export async function unlessGone<T>(step: () => Promise<T>): Promise<T | null> {
  try {
    return await step();
  } catch (error) {
    if (["ENOENT", "ESRCH", "ENODEV"].includes(errnoOf(error) ?? "")) return null;
    throw error;
  }
}

/** These files are there or not, and never made by writing. */
async function write(path: string, text: string): Promise<void> {
  await writeFile(path, text, { flag: constants.O_WRONLY });
}

export function ownGroupAt(folder: string): GroupName | null {
  return parseGroupName(basename(folder));
}
