import { assert } from "../../base/assert.ts";

/** How long a thread may run in each period. */
export interface QuotaFigures {
  readonly quotaUs: number;
  readonly periodUs: number;
}

/** Linux accepts no quota below this, and no period above that one. */
const QUOTA_US_MIN = 1_000;
const PERIOD_US_MAX = 1_000_000;

/** Shorter stalls disturb the guest's own timers less; shorter periods cost the kernel more. */
const PERIOD_US_MIN = 10_000;

/**
 * The quota of one vCPU thread from which `percent` is taken of what it could have had: all of one
 * processor, or `ceilingCpus` where a cgroup above allows less. Version 1 refuses a quota that is
 * above that of a parent, hence rounded down.
 */
export function quotaFor(percent: number, ceilingCpus: number): QuotaFigures {
  assert(percent > 0 && percent <= 99, "a quota leaves the guest something and takes something");
  assert(ceilingCpus > 0, "a thread that may not run needs no quota");
  const cpus = (Math.min(1, ceilingCpus) * (100 - percent)) / 100;
  const periodUs = Math.ceil(clamp(QUOTA_US_MIN / cpus, PERIOD_US_MIN, PERIOD_US_MAX));
  return { quotaUs: Math.max(QUOTA_US_MIN, Math.floor(cpus * periodUs)), periodUs };
}

/** Reads version 2's `cpu.max`, such as "max 100000" or "50000 100000", as processors. */
export function cpusOfMax(text: string): number {
  const [quota = "max", period = ""] = text.trim().split(" ");
  return quota === "max" ? Number.POSITIVE_INFINITY : Number(quota) / Number(period);
}

/** The same of version 1's two files, where a negative quota is none. */
export function cpusOfQuota(quotaText: string, periodText: string): number {
  const quota = Number(quotaText);
  return quota < 0 ? Number.POSITIVE_INFINITY : quota / Number(periodText);
}

function clamp(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, value));
}
