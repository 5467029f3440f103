import { readFileSync } from "node:fs";
import { must } from "../../base/assert.ts";

/** The kernel's unit of processor time in /proc, whatever its own. */
const TICK_MS = 10;

/** Fields of /proc/PID/stat behind the name in parentheses, from 0: user and system time. */
const USER_FIELD = 11;
const SYSTEM_FIELD = 12;

/** Processor time that a process has used in its life, those of its threads that ended included. */
export function cpuMsOf(processId: number): number {
  return cpuMsIn(`/proc/${processId}/stat`);
}

/** The same without some threads, such as those that run a guest. */
export function cpuMsWithout(processId: number, threadIds: readonly number[]): number {
  const parts = threadIds.map((id) => cpuMsIn(`/proc/${processId}/task/${id}/stat`));
  return parts.reduce((sum, part) => sum - part, cpuMsOf(processId));
}

/** Bytes that went over the loopback interface so far, with the headers of TCP and IP. */
export function loopbackBytes(): number {
  const line = readFileSync("/proc/net/dev", "utf8")
    .split("\n")
    .find((text) => text.trimStart().startsWith("lo:"));
  return Number(must(line, "there is a loopback interface").split(":")[1]?.trim().split(/\s+/)[0]);
}

function cpuMsIn(path: string): number {
  const stat = readFileSync(path, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[USER_FIELD]) + Number(fields[SYSTEM_FIELD])) * TICK_MS;
}
