import { existsSync, readlinkSync } from "node:fs";

/**
 * The number by which Linux knows the calling thread, in `/proc`. 0 where it has none: there nobody can
 * tell whether a thread has gone.
 */
export function threadNumber(): number {
  try {
    return Number(readlinkSync("/proc/thread-self").split("/").at(-1));
  } catch {
    return 0;
  }
}

/** Whether a thread of this process is no more, so that it does nothing any more, either. */
export function isThreadGone(number: number): boolean {
  return number !== 0 && existsSync("/proc/self/task") && !existsSync(`/proc/self/task/${number}`);
}
