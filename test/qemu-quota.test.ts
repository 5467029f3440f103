import { mkdirSync, readdirSync, rmdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Deadline } from "../base/clock.ts";
import type { CpuCgroup } from "../hosts/qemu/cgroups.ts";
import { type CpuQuota, openCpuQuota } from "../hosts/qemu/cpu-quota.ts";
import { limitGroup, moveThread, parseGroupName, removeGroup } from "../hosts/qemu/quota-group.ts";
import { liftStaleQuotas } from "../hosts/qemu/stale-quotas.ts";
import {
  cgroupOf,
  decideQuotaReadiness,
  enabledIn,
  limitIn,
  makeThreadGroup,
  throttledPeriodsIn,
  whereIs,
} from "./fixtures/quota-cgroups.ts";
import { type Child, startBusy, startEngine } from "./fixtures/quota-guest.ts";

const LIMIT_MS = 20_000;

const { isSkipped, because } = decideQuotaReadiness("Quotas are");
const isVersion2 = !isSkipped && cgroupOf(process.pid, process.pid).version === 2;
const whyNotVersion2 = isVersion2
  ? ""
  : " (SKIPPED: version 2 has no cpu controller here; `npm run test:real` has it in a machine of its own)";

/** Whoever else opens a QEMU on this machine, such as another test, may lift the quota first. */
const OTHERS_MAY_LIFT = { retry: 5 };

/** What most containers are given: cgroups that can be looked at. */
function whereCgroupsAreReadOnly(folder: string): string[] {
  const script = `mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"`;
  return ["unshare", "--mount", "sh", "-c", script, folder];
}

async function opened(guest: Child, threadIds: readonly number[]): Promise<CpuQuota> {
  const opening = await openCpuQuota({ processId: guest.id, threadIds });
  if (opening.kind === "unavailable") throw new Error(opening.reason);
  return opening.quota;
}

function ownGroupsIn(folder: string): string[] {
  return readdirSync(folder).filter((name) => parseGroupName(name) !== null);
}

describe.skipIf(isSkipped)(`a quota by cgroups${because}`, () => {
  let guest: Child;
  let cgroup: CpuCgroup;
  let home: string;
  let enabled: readonly string[] | null;

  beforeEach(async () => {
    guest = await startBusy();
    cgroup = cgroupOf(guest.id, guest.id);
    home = cgroup.folder;
    enabled = enabledIn(cgroup);
  });

  afterEach(async () => {
    await guest?.kill();
    expect(ownGroupsIn(home)).toEqual([]);
    expect(enabledIn(cgroup)).toEqual(enabled);
  });

  test("leaves everything as it is until it is set", async () => {
    await opened(guest, guest.threadIds);
    for (const threadId of guest.threadIds) expect(whereIs(guest.id, threadId)).toBe(home);
    expect(ownGroupsIn(home)).toEqual([]);
  });

  test("holds the threads that it is for, each by itself, and no others", async () => {
    const [first = 0, second = 0, ...others] = guest.threadIds;
    const quota = await opened(guest, [first, second]);
    await quota.set(75);
    for (const threadId of [first, second]) {
      const folder = whereIs(guest.id, threadId);
      expect(dirname(folder)).toBe(home);
      expect(limitIn(folder)).toEqual([2_500, 10_000]);
    }
    expect(whereIs(guest.id, first)).not.toBe(whereIs(guest.id, second));
    expect(others.length).toBeGreaterThan(0);
    for (const threadId of others) expect(whereIs(guest.id, threadId)).toBe(home);
    await quota.lift();
  });

  test("takes time from a thread that never rests", async () => {
    const quota = await opened(guest, [guest.id]);
    await quota.set(50);
    const folder = whereIs(guest.id, guest.id);
    const deadline = new Deadline(LIMIT_MS);
    while (throttledPeriodsIn(folder) < 2 && !deadline.passed) await turn();
    expect(throttledPeriodsIn(folder)).toBeGreaterThanOrEqual(2);
    await quota.lift();
  });

  test("changes, goes and comes back", async () => {
    const quota = await opened(guest, [guest.id]);
    for (const [percent, limit] of [
      [20, [8_000, 10_000]],
      [99, [1_000, 100_000]],
      [30, [7_000, 10_000]],
    ] as const) {
      await quota.set(percent);
      expect(limitIn(whereIs(guest.id, guest.id))).toEqual(limit);
    }
    await quota.set(0);
    expect(whereIs(guest.id, guest.id)).toBe(home);
    expect(ownGroupsIn(home)).toEqual([]);
    await quota.set(10);
    expect(whereIs(guest.id, guest.id)).not.toBe(home);
    await quota.lift();
    await quota.lift();
    expect(whereIs(guest.id, guest.id)).toBe(home);
  });

  test("obeys one call after the other", async () => {
    const quota = await opened(guest, guest.threadIds);
    await Promise.all([quota.set(50), quota.lift(), quota.set(90), quota.set(0)]);
    for (const threadId of guest.threadIds) expect(whereIs(guest.id, threadId)).toBe(home);
    expect(ownGroupsIn(home)).toEqual([]);
  });

  test("goes back to where each thread was found", async () => {
    const [, second = 0, third = 0] = guest.threadIds;
    const own = makeThreadGroup(cgroup);
    try {
      await moveThread(own, second);
      const quota = await opened(guest, [second, third]);
      await quota.set(40);
      expect(dirname(whereIs(guest.id, second))).toBe(own.folder);
      expect(dirname(whereIs(guest.id, third))).toBe(home);
      await quota.lift();
      expect(whereIs(guest.id, second)).toBe(own.folder);
      expect(whereIs(guest.id, third)).toBe(home);
    } finally {
      await guest.kill();
      await removeGroup(own);
    }
  });

  test("is below a limit that was set before", async () => {
    const own = makeThreadGroup(cgroup);
    try {
      await limitGroup(own, { quotaUs: 50_000, periodUs: 100_000 });
      await moveThread(own, guest.id);
      const quota = await opened(guest, [guest.id]);
      await quota.set(50);
      expect(limitIn(whereIs(guest.id, guest.id))).toEqual([2_500, 10_000]);
      await quota.lift();
      expect(limitIn(own.folder)).toEqual([50_000, 100_000]);
    } finally {
      await guest.kill();
      await removeGroup(own);
    }
  });

  test("of a guest that has ended is lifted like any other", async () => {
    const quota = await opened(guest, guest.threadIds);
    await quota.set(50);
    await guest.kill();
    await quota.lift();
    expect(ownGroupsIn(home)).toEqual([]);
    await quota.set(50);
    expect(ownGroupsIn(home)).toEqual([]);
  });

  test("is refused with a reason where cgroups are read-only", async () => {
    await using engine = await startEngine(guest, whereCgroupsAreReadOnly(cgroup.mountPoint));
    expect(engine.said).toContain("this user may not change the guest's cgroup");
    expect(engine.said).toContain("EROFS");
    expect(whereIs(guest.id, guest.id)).toBe(home);
  });

  test("is refused with a reason where another engine has one", async () => {
    await using engine = await startEngine(guest);
    expect(engine.said).toBe("throttled");
    expect(await openCpuQuota({ processId: guest.id, threadIds: [guest.id] })).toEqual({
      kind: "unavailable",
      reason: `process ${engine.id} throttles it already`,
    });
    await engine.kill();
    await liftStaleQuotas();
  });

  test(
    "of an engine that was killed is found and lifted, one of an engine that lives is not",
    OTHERS_MAY_LIFT,
    async () => {
      await using engine = await startEngine(guest);
      const folder = whereIs(guest.id, guest.id);
      expect(dirname(folder)).toBe(home);
      expect((await liftStaleQuotas()).threadIds).not.toContain(guest.id);
      expect(whereIs(guest.id, guest.id)).toBe(folder);
      await engine.kill();
      expect(whereIs(guest.id, guest.id)).toBe(folder);
      const lifted = await liftStaleQuotas();
      expect(lifted.threadIds).toContain(guest.id);
      expect(lifted.problems).toEqual([]);
      expect(whereIs(guest.id, guest.id)).toBe(home);
    },
  );

  test("of an engine that was killed does not keep the next from throttling", async () => {
    await using engine = await startEngine(guest);
    await engine.kill();
    const quota = await opened(guest, [guest.id]);
    expect(whereIs(guest.id, guest.id)).toBe(home);
    await quota.set(90);
    expect(limitIn(whereIs(guest.id, guest.id))).toEqual([1_000, 10_000]);
    await quota.lift();
  });

  test("takes whole percents only, and not all of them", async () => {
    const quota = await opened(guest, [guest.id]);
    for (const percent of [-1, 100, 0.5, Number.NaN]) {
      await expect(quota.set(percent), `${percent} percent`).rejects.toThrow(RangeError);
    }
  });

  describe.skipIf(!isVersion2)(`of version 2${whyNotVersion2}`, () => {
    test("enables the controller for as long as one is there", async () => {
      const [first = 0, second = 0] = guest.threadIds;
      const quotas = [await opened(guest, [first]), await opened(guest, [second])];
      for (const quota of quotas) await quota.set(50);
      expect(enabledIn(cgroup)).toEqual(["cpu"]);
      await quotas[0]?.lift();
      expect(enabledIn(cgroup)).toEqual(["cpu"]);
      await quotas[1]?.lift();
      expect(enabledIn(cgroup)).toEqual([]);
    });

    test("leaves the controller to whom has enabled it", async () => {
      writeFileSync(join(home, "cgroup.subtree_control"), "+cpu");
      try {
        const quota = await opened(guest, [guest.id]);
        await quota.set(50);
        await quota.lift();
        expect(enabledIn(cgroup)).toEqual(["cpu"]);
      } finally {
        writeFileSync(join(home, "cgroup.subtree_control"), "-cpu");
      }
    });

    test("is refused with what to do where the controller is not given", async () => {
      const folder = join(home, `multifd-test-${process.pid}`);
      mkdirSync(folder);
      try {
        writeFileSync(join(folder, "cgroup.procs"), `${guest.id}`);
        expect(await openCpuQuota({ processId: guest.id, threadIds: [guest.id] })).toEqual({
          kind: "unavailable",
          reason: `cgroup "${folder}" is not given the cpu controller; start QEMU in one that is, such as by "systemd-run --scope --property=Delegate=cpu"`,
        });
        expect(readdirSync(folder).filter((name) => name.includes("quota"))).toEqual([]);
      } finally {
        await guest.kill();
        rmdirSync(folder);
      }
    });

    test("holds a thread that was at the root", async () => {
      const { mountPoint } = cgroup;
      writeFileSync(join(mountPoint, "cgroup.procs"), `${guest.id}`);
      const quota = await opened(guest, [guest.id]);
      await quota.set(75);
      expect(dirname(whereIs(guest.id, guest.id))).toBe(mountPoint);
      expect(limitIn(whereIs(guest.id, guest.id))).toEqual([2_500, 10_000]);
      await quota.lift();
      expect(whereIs(guest.id, guest.id)).toBe(mountPoint);
      expect(ownGroupsIn(mountPoint)).toEqual([]);
    });
  });
});
