import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { QemuDestination, QemuSource } from "../hosts/qemu.ts";
import { decideQuotaReadiness, whereIs } from "./fixtures/quota-cgroups.ts";
import { type Child, startAndKillEngine, startBusy } from "./fixtures/quota-guest.ts";
import { FakeQemu } from "./harness/fake-qemu.ts";
import { startCli } from "./run-cli.ts";

const { isSkipped, because } = decideQuotaReadiness("Quotas that were left are");

/** Whoever else opens a QEMU on this machine, such as another test, may lift the quota first. */
const OTHERS_MAY_LIFT = { retry: 5 };
const LIFTED = /^lifted the quota that a killed migration had left on \d+ threads$/;

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

  test(
    "of an engine that was killed is lifted at either end, which notes it",
    OTHERS_MAY_LIFT,
    async () => {
      await using from = await FakeQemu.start();
      await using to = await FakeQemu.start({ runState: "inmigrate" });
      await startAndKillEngine(guest);
      await using source = await QemuSource.open(from.path);
      expect(source.notes).toEqual([expect.stringMatching(LIFTED)]);
      expect(whereIs(guest.id, guest.id)).toBe(home);
      await startAndKillEngine(guest);
      await using destination = await QemuDestination.open(to.path);
      expect(destination.notes).toEqual([expect.stringMatching(LIFTED)]);
      expect(whereIs(guest.id, guest.id)).toBe(home);
    },
  );

  test.for([
    ["send", "running"],
    ["receive", "inmigrate"],
  ] as const)(
    "of an engine that was killed is lifted by %s, which says so",
    OTHERS_MAY_LIFT,
    async ([command, runState]) => {
      await using fake = await FakeQemu.start({ runState });
      await startAndKillEngine(guest);
      await using cli = startCli([command, "tcp:127.0.0.1:0", "--qemu", fake.path, "--json"]);
      const { value: first } = await cli.events().next();
      expect(first).toEqual({ event: "note", text: expect.stringMatching(LIFTED) });
    },
  );
});
