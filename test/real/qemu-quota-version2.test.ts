import { describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { missingPrograms } from "./programs.ts";
import { MACHINE_MIB, runWithCgroups2 } from "./quota-machine.ts";
import { decideReadiness, missingMemory } from "./requirements.ts";

const { missing, isSkipped, because } = decideReadiness("quotas in cgroups of version 2 alone", [
  ...missingPrograms(),
  ...missingMemory(MACHINE_MIB * MIB),
]);

test.skipIf(isSkipped)(`this machine can run one with cgroups of version 2${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`a kernel with cgroups of version 2 alone${because}`, () => {
  test("gives quotas and gets them back as version 1 does, and enables its controller", async () => {
    const { passed, failed, skipped } = await runWithCgroups2("test/qemu-quota.test.ts");
    expect(failed).toEqual([]);
    expect(skipped).toEqual([]);
    expect(passed).toContain("a quota by cgroups takes time from a thread that never rests");
    expect(passed.filter((name) => name.includes(" of version 2 "))).toHaveLength(4);
  });
});
