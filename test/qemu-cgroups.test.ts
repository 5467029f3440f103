import { describe, expect, test } from "vitest";
import { findCpuCgroup, parseMemberships, parseMounts } from "../hosts/qemu/cgroups.ts";
import { cpusOfMax, cpusOfQuota, quotaFor } from "../hosts/qemu/quota-figures.ts";
import { formatGroupName, parseGroupName } from "../hosts/qemu/quota-group.ts";
import { parseStat } from "../hosts/qemu/quota-owner.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

interface System {
  readonly mountinfo: string;
  /** Of a vCPU thread. */
  readonly cgroup: string;
  /** Version and folder, or why not. */
  readonly found: readonly [1 | 2, string] | string;
}

const V1_MOUNTS = `22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
32 30 0:29 / /sys/fs/cgroup/cpuset rw shared:14 - cgroup cgroup rw,cpuset
33 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
`;

const SYSTEMS: Readonly<Record<string, System>> = {
  "version 1 under libvirt": {
    mountinfo: V1_MOUNTS,
    cgroup: `12:cpuset:/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/vcpu0
4:cpu,cpuacct:/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/vcpu0
1:name=systemd:/machine.slice/machine-qemu\\x2d1\\x2dvm.scope
`,
    found: [
      1,
      "/sys/fs/cgroup/cpu,cpuacct/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/vcpu0",
    ],
  },
  "version 1, where cpuset and cpuacct are not taken for cpu": {
    mountinfo: `32 30 0:29 / /cg/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:30 / /cg/cpuacct rw - cgroup cgroup rw,cpuacct
34 30 0:31 / /cg/cpu rw - cgroup cgroup rw,cpu
`,
    cgroup: "3:cpuset:/a\n2:cpuacct:/b\n1:cpu:/\n0::/\n",
    found: [1, "/cg/cpu"],
  },
  "version 2 under systemd": {
    mountinfo: "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    cgroup: "0::/user.slice/user-1000.slice/session-2.scope\n",
    found: [2, "/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope"],
  },
  "version 2, at its root": {
    mountinfo: "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    cgroup: "0::/\n",
    found: [2, "/sys/fs/cgroup"],
  },
  "both, where version 1 has cpu": {
    mountinfo: `${V1_MOUNTS}40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n`,
    cgroup: "4:cpu,cpuacct:/vm\n0::/elsewhere\n",
    found: [1, "/sys/fs/cgroup/cpu,cpuacct/vm"],
  },
  "both, where version 1 has only others": {
    mountinfo: `31 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`,
    cgroup: "1:name=systemd:/init.scope\n0::/init.scope\n",
    found: [2, "/sys/fs/cgroup/unified/init.scope"],
  },
  "a container of version 1 that sees its own part": {
    mountinfo: "33 30 0:30 /docker/5ab /sys/fs/cgroup/cpu ro master:15 - cgroup cgroup rw,cpu\n",
    cgroup: "4:cpu:/docker/5ab/qemu\n",
    found: [1, "/sys/fs/cgroup/cpu/qemu"],
  },
  "a container of version 1, in the topmost cgroup that it sees": {
    mountinfo: "33 30 0:30 /docker/5ab /sys/fs/cgroup/cpu ro master:15 - cgroup cgroup rw,cpu\n",
    cgroup: "4:cpu:/docker/5ab\n",
    found: [1, "/sys/fs/cgroup/cpu"],
  },
  "a container of version 2 with a namespace": {
    mountinfo: "520 510 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
    cgroup: "0::/\n",
    found: [2, "/sys/fs/cgroup"],
  },
  "a guest beside the container": {
    mountinfo: "520 510 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
    cgroup: "0::/../vm\n",
    found: `the guest's cgroup "/../vm" cannot be seen from here`,
  },
  "a guest in a cgroup whose name only begins like the container's": {
    mountinfo: "33 30 0:30 /docker/5ab /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n",
    cgroup: "4:cpu:/docker/5abc\n",
    found: `the guest's cgroup "/docker/5abc" cannot be seen from here`,
  },
  "a mount that shows another part comes before": {
    mountinfo: `33 30 0:30 /other /mnt rw - cgroup cgroup rw,cpu
34 30 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
`,
    cgroup: "4:cpu:/vm\n",
    found: [1, "/sys/fs/cgroup/cpu/vm"],
  },
  "paths with spaces and colons": {
    mountinfo: "33 30 0:30 / /my\\040cgroups rw - cgroup cgroup rw,cpu\n",
    cgroup: "4:cpu:/vm:1 a\n",
    found: [1, "/my cgroups/vm:1 a"],
  },
  "nothing mounted": {
    mountinfo: "22 1 0:20 / / rw - ext4 /dev/vda rw\n",
    cgroup: "4:cpu,cpuacct:/\n0::/\n",
    found: "the cgroups for processor time (version 1) are not mounted here",
  },
  "a kernel without": {
    mountinfo: "22 1 0:20 / / rw - ext4 /dev/vda rw\n",
    cgroup: "",
    found: "this system has no cgroups for processor time",
  },
};

describe("the cgroup of a thread is found:", () => {
  test.for(Object.entries(SYSTEMS))("%s", ([, { mountinfo, cgroup, found }]) => {
    const search = findCpuCgroup(parseMemberships(cgroup), parseMounts(mountinfo));
    expect(search.kind === "missing" ? search.reason : [search.version, search.folder]).toEqual(
      found,
    );
  });
});

describe("the figures of a quota", () => {
  test("leave what is not taken", () => {
    expect(quotaFor(20, Number.POSITIVE_INFINITY)).toEqual({ quotaUs: 8_000, periodUs: 10_000 });
    expect(quotaFor(99, Number.POSITIVE_INFINITY)).toEqual({ quotaUs: 1_000, periodUs: 100_000 });
  });

  test("are of what a cgroup above allows, and never above it", () => {
    expect(quotaFor(50, 0.5)).toEqual({ quotaUs: 2_500, periodUs: 10_000 });
    expect(quotaFor(50, 4)).toEqual(quotaFor(50, 1));
  });

  const seed = seedFromEnvironment();
  test(`are such that Linux takes them, whatever is asked (SEED=${seed})`, () => {
    const random = new Prng(seed);
    for (let round = 0; round < 2_000; round += 1) {
      const percent = 1 + random.below(99);
      const ceilingCpus = 0.1 + random.below(10_000) / 1_000;
      const { quotaUs, periodUs } = quotaFor(percent, ceilingCpus);
      const wanted = (Math.min(1, ceilingCpus) * (100 - percent)) / 100;
      expect(Number.isInteger(quotaUs) && Number.isInteger(periodUs)).toBe(true);
      expect(quotaUs).toBeGreaterThanOrEqual(1_000);
      expect(periodUs).toBeGreaterThanOrEqual(10_000);
      expect(periodUs).toBeLessThanOrEqual(1_000_000);
      expect(quotaUs / periodUs).toBeLessThanOrEqual(wanted + 1e-9);
      expect(quotaUs / periodUs).toBeGreaterThan(wanted - 1 / periodUs - 1e-9);
    }
  });

  test("of others are read in both versions", () => {
    expect(cpusOfMax("max 100000\n")).toBe(Number.POSITIVE_INFINITY);
    expect(cpusOfMax("150000 100000\n")).toBe(1.5);
    expect(cpusOfQuota("-1\n", "100000\n")).toBe(Number.POSITIVE_INFINITY);
    expect(cpusOfQuota("25000\n", "100000\n")).toBe(0.25);
  });
});

describe("the name of a cgroup of ours", () => {
  const owner = { namespace: 4_026_531_836, processId: 17, startTicks: 123_456 };

  test.for([true, false])("tells all that undoing takes (controller: %s)", (isController) => {
    const name = { owner, threadId: 42, isController };
    expect(parseGroupName(formatGroupName(name))).toEqual(name);
  });

  test.for([
    "user.slice",
    "multifd-quota",
    "multifd-quota-1-2-3-thread-x",
    "my-multifd-quota-1-2-3-thread-4",
    "multifd-quota-1-2-3-thread-4-cpuset",
  ])("is not taken for that of others: %s", (name) => {
    expect(parseGroupName(name)).toBe(null);
  });
});

test("a process is known by its start, whatever it calls itself", () => {
  const after = "S 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0";
  expect(parseStat(`17 (a) R (b) ${after}`)).toEqual({ isDead: false, startTicks: 987_654 });
  expect(parseStat(`17 (x) ${after.replace("S", "Z")}`).isDead).toBe(true);
});
