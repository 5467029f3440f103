import { readFile, readlink } from "node:fs/promises";
import { errnoOf } from "../../base/errors.ts";

/** One process, never to be taken for a later one with the same number, nor for one elsewhere. */
export interface QuotaOwner {
  readonly processId: number;
  /** When it started, in the kernel's ticks since the machine did. */
  readonly startTicks: number;
  /** In which namespace the number means something. */
  readonly namespace: number;
}

/** This process. */
export async function thisOwner(): Promise<QuotaOwner> {
  const [stat, namespace] = await Promise.all([statOf(process.pid), thisNamespace()]);
  if (stat === null) throw new Error("/proc does not show this process");
  return { processId: process.pid, startTicks: stat.startTicks, namespace };
}

/**
 * Whether an owner is certainly gone. Of a process in another namespace nobody can tell from here,
 * and a quota of an engine that lives must not be lifted.
 */
export async function isGone(owner: QuotaOwner): Promise<boolean> {
  if (owner.namespace !== (await thisNamespace())) return false;
  const stat = await statOf(owner.processId);
  return stat === null || stat.isDead || stat.startTicks !== owner.startTicks;
}

interface ProcessStat {
  /** It has ended, and its parent has not asked yet. */
  readonly isDead: boolean;
  readonly startTicks: number;
}

/** Reads a `/proc/PID/stat`, as proc(5) describes it. */
export function parseStat(text: string): ProcessStat {
  // The second field is a name in parentheses, which may itself hold spaces and parentheses.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [state = ""] = fields;
  return { isDead: "ZXx".includes(state), startTicks: Number(fields[19]) };
}

async function statOf(processId: number): Promise<ProcessStat | null> {
  try {
    return parseStat(await readFile(`/proc/${processId}/stat`, "utf8"));
  } catch (error) {
    // It ended before the file was opened, or while it was read.
    if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ESRCH") return null;
    throw error;
  }
}

async function thisNamespace(): Promise<number> {
  return Number(/\d+/.exec(await readlink("/proc/self/ns/pid"))?.[0]);
}
