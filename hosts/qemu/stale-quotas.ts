import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { within } from "../../base/clock.ts";
import { reasonOf } from "../../base/errors.ts";
import { type CgroupMount, parseMounts } from "./cgroups.ts";
import { parseGroupName, removeGroup, unlessGone } from "./quota-group.ts";
import { isGone } from "./quota-owner.ts";

export interface LiftedQuotas {
  /** Threads that run freely again. */
  readonly threadIds: readonly number[];
  /** What could not be lifted and why, each in a sentence for the user. */
  readonly problems: readonly string[];
}

/** A large host has thousands of cgroups, each a folder in memory. */
const LIMIT_MS = 20_000;

/**
 * Lifts what engines that were killed have left on any guest, and says so in sentences. It is not
 * worth failing for.
 */
export async function liftLeftQuotas(): Promise<readonly string[]> {
  try {
    const { threadIds, problems } = await liftStaleQuotas();
    const lifted = `lifted the quota that a killed migration had left on ${threadIds.length} threads`;
    return threadIds.length === 0 ? problems : [lifted, ...problems];
  } catch (error) {
    return [`cannot look for quotas of a killed migration: ${reasonOf(error)}`];
  }
}

/**
 * Lifts the quotas that engines have left which were killed while they throttled. Those of engines
 * that live stay.
 */
export async function liftStaleQuotas(): Promise<LiftedQuotas> {
  const late = () => new Error(`Cannot look for old quotas: ${LIMIT_MS} ms have gone by`);
  return await within(LIMIT_MS, liftAll(), late);
}

async function liftAll(): Promise<LiftedQuotas> {
  const threadIds: number[] = [];
  const problems: string[] = [];
  const mounts = parseMounts(await readFile("/proc/self/mountinfo", "utf8"));
  for (const mount of mounts.filter(mayHaveQuotas)) {
    for await (const { folder, name } of foldersUnder(mount.mountPoint)) {
      const group = parseGroupName(name);
      if (group === null || !(await isGone(group.owner))) continue;
      try {
        await removeGroup({ version: mount.version, folder, isController: group.isController });
        threadIds.push(group.threadId);
      } catch (error) {
        const { processId } = group.owner;
        problems.push(
          `Cannot lift the quota that process ${processId} has left on thread ${group.threadId}: ${reasonOf(error)}`,
        );
      }
    }
  }
  return { threadIds, problems };
}

function mayHaveQuotas({ version, controllers }: CgroupMount): boolean {
  return version === 2 || controllers.includes("cpu");
}

/** Parents first. What vanishes while we look was somebody else's. */
async function* foldersUnder(top: string): AsyncGenerator<{ folder: string; name: string }> {
  const waiting = [top];
  for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
    const path = at;
    const entries = (await unlessGone(() => readdir(path, { withFileTypes: true }))) ?? [];
    for (const entry of entries.filter((found) => found.isDirectory())) {
      const folder = join(path, entry.name);
      yield { folder, name: entry.name };
      waiting.push(folder);
    }
  }
}
