import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { QemuDestination, QemuSource } from "../hosts/qemu.ts";
import { decideQuotaReadiness, whereIs } from "./fixtures/quota-cgroups.ts";
import { type Child, startAndKillEngine, startBusy } from "./fixtures/quota-guest.ts";
import { FakeQemu } from "./harness/fake-qemu.ts";

const { isSkipped, because } = decideQuotaReadiness("Quotas that were left are");

describe.skipIf(isSkipped)(`a quota${because}`, () => {
  let guest: Child;
  let home: string;

  beforeEach(async () => {
    guest = await startBusy();
    home = whereIs(guest.id, guest.id);
  });

  afterEach(async () => {
    await guest?.kill();
  });

  test("of an engine that was killed is lifted at a source whose guest is still being migrated", async () => {
    await startAndKillEngine(guest);
    await using fake = await FakeQemu.start();
    fake.migration = "active";
    await expect(QemuSource.open(fake.path)).rejects.toMatchObject({ code: "GUEST_UNSUITABLE" });
    expect(whereIs(guest.id, guest.id)).toBe(home);
  });

  test("of an engine that was killed is lifted at a destination that is not waiting", async () => {
    await startAndKillEngine(guest);
    await using fake = await FakeQemu.start();
    const opened = QemuDestination.open(fake.path);
    await expect(opened).rejects.toMatchObject({ code: "GUEST_UNSUITABLE" });
    expect(whereIs(guest.id, guest.id)).toBe(home);
  });
});
