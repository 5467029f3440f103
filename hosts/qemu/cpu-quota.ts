import { readFile } from "node:fs/promises";
import { within } from "../../base/clock.ts";
import { errnoOf, reasonOf } from "../../base/errors.ts";
import { type CpuCgroup, findCpuCgroup, parseMemberships, parseMounts } from "./cgroups.ts";
import { quotaFor } from "./quota-figures.ts";
import {
  ceilingCpusOf,
  createGroup,
  limitGroup,
  moveThread,
  ownGroupAt,
  type QuotaGroup,
  removeGroup,
  unlessGone,
} from "./quota-group.ts";
import { isGone, type QuotaOwner, thisOwner } from "./quota-owner.ts";

/** Whose time is taken: the threads that run the guest's processors, and none that serve it. */
export interface ThrottledThreads {
  readonly processId: number;
  readonly threadIds: readonly number[];
}

export type CpuQuotaOpening =
  | { readonly kind: "quota"; readonly quota: CpuQuota }
  | { readonly kind: "unavailable"; readonly reason: string };

/** Writes that wait for the kernel's scheduler take milliseconds; some hundred threads, a second. */
const LIMIT_MS = 10_000;

/**
 * Takes processor time from a guest by cgroups. It tries first, with no limit, all that a quota
 * takes, and undoes it: what is refused is refused here, with the reason, and never in the middle
 * of a migration.
 */
export async function openCpuQuota(threads: ThrottledThreads): Promise<CpuQuotaOpening> {
  try {
    const quota = new CpuQuota(threads, await thisOwner());
    await quota.rehearse();
    return { kind: "quota", quota };
  } catch (error) {
    return { kind: "unavailable", reason: explained(error) };
  }
}

/**
 * The quota of one guest. Each vCPU thread gets a cgroup of its own below the one where it was
 * found: in a common one a single busy vCPU would use up what the idle ones leave. Limits that
 * somebody else has set above stay in force.
 */
export class CpuQuota {
  readonly #threads: ThrottledThreads;
  readonly #owner: QuotaOwner;
  readonly #groups = new Map<number, { group: QuotaGroup; ceilingCpus: number }>();
  #work: Promise<void> = Promise.resolve();

  constructor(threads: ThrottledThreads, owner: QuotaOwner) {
    this.#threads = threads;
    this.#owner = owner;
  }

  /** Goes once through everything that can be refused. */
  async rehearse(): Promise<void> {
    await this.#inTurn("try a quota", async () => {
      try {
        await this.#enter();
      } finally {
        await this.#leave();
      }
    });
  }

  /**
   * Takes `percent` (0 to 99) of their time from the threads. 0 lifts it. When it throws, they have
   * all of their time.
   */
  async set(percent: number): Promise<void> {
    if (!Number.isInteger(percent) || percent < 0 || percent > 99) {
      throw new RangeError(`Cannot take ${percent} percent: it is not an integer in 0..99`);
    }
    if (percent === 0) return await this.lift();
    await this.#inTurn(`take ${percent} percent`, async () => {
      try {
        await this.#enter();
        for (const { group, ceilingCpus } of this.#groups.values()) {
          await limitGroup(group, quotaFor(percent, ceilingCpus));
        }
      } catch (error) {
        await this.#leave();
        throw error;
      }
    });
  }

  /** The threads run freely again, and where they were. Harmless when they do. */
  async lift(): Promise<void> {
    await this.#inTurn("lift the quota", () => this.#leave());
  }

  /** One after the other: what was given up for being late may still take effect. */
  async #inTurn(action: string, step: () => Promise<void>): Promise<void> {
    const work = this.#work.then(step);
    this.#work = work.catch(() => {});
    const late = () => new Error(`Cannot ${action}: ${LIMIT_MS} ms have gone by`);
    await within(LIMIT_MS, work, late);
  }

  async #enter(): Promise<void> {
    const { threadIds } = this.#threads;
    for (const threadId of threadIds.filter((id) => !this.#groups.has(id))) {
      const found = await this.#cgroupOf(threadId);
      if (found === null) continue; // The vCPU was unplugged.
      const ceilingCpus = await ceilingCpusOf(found);
      const group = await createGroup(found, { owner: this.#owner, threadId });
      this.#groups.set(threadId, { group, ceilingCpus });
      await limitGroup(group, null);
      await moveThread(group, threadId);
    }
  }

  /** Undoes as much as it can, also when a part of it fails. */
  async #leave(): Promise<void> {
    const problems: unknown[] = [];
    for (const [threadId, { group }] of this.#groups) {
      try {
        await removeGroup(group);
        this.#groups.delete(threadId);
      } catch (error) {
        problems.push(error);
      }
    }
    if (problems.length > 0) {
      throw new Error(`the quota stays on ${problems.length} threads: ${reasonOf(problems[0])}`);
    }
  }

  /** Null when the thread has ended. Lifts what a dead engine has left on it. */
  async #cgroupOf(threadId: number): Promise<CpuCgroup | null> {
    const found = await this.#whereIs(threadId);
    const former = found === null ? null : ownGroupAt(found.folder);
    if (found === null || former === null) return found;
    if (!(await isGone(former.owner))) {
      throw new Error(`process ${former.owner.processId} throttles it already`);
    }
    await removeGroup({ ...found, isController: former.isController });
    return await this.#whereIs(threadId);
  }

  async #whereIs(threadId: number): Promise<CpuCgroup | null> {
    const path = `/proc/${this.#threads.processId}/task/${threadId}/cgroup`;
    const text = await unlessGone(() => readFile(path, "utf8"));
    if (text === null) return null;
    const mounts = parseMounts(await readFile("/proc/self/mountinfo", "utf8"));
    const found = findCpuCgroup(parseMemberships(text), mounts);
    if (found.kind === "missing") throw new Error(found.reason);
    return found;
  }
}

/** Most often it is a matter of rights, and then the system's words are not what the user needs. */
function explained(error: unknown): string {
  const reason = reasonOf(error);
  return ["EACCES", "EPERM", "EROFS"].includes(errnoOf(error) ?? "")
    ? `this user may not change the guest's cgroup (${reason}); root may, or whoever it was delegated to`
    : reason;
}
