import { existsSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "../../base/assert.ts";
import { MIB } from "../../base/units.ts";
import { problemsOf, readSaid } from "./guest/beats.ts";
import { GuestImage } from "./guest/image.ts";
import { findWorkPages, meddle, readPage } from "./guest/pages.ts";
import { type GuestWork, IDLE, Qemu } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

const PAGES_PER_MIB = MIB / 4096;

const { missing, isSkipped, because } = decideReadiness("guests that check their memory", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

test.skipIf(isSkipped)(`this machine can boot a guest that checks its memory${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`a guest that checks its memory${because}`, () => {
  let image: GuestImage;

  beforeAll(async () => {
    image = await GuestImage.build();
  });

  afterAll(async () => {
    await image?.[Symbol.asyncDispose]();
  });

  test.for<[string, GuestWork, 1 | 2]>([
    ["idle", IDLE, 1],
    ["busy", { sizeMib: 16 }, 1],
    ["busy, on two nodes", { sizeMib: 16 }, 2],
    ["idle, with half of its memory in use", { ...IDLE, usedMib: 96 }, 1],
  ])("beats and finds all in order: %s", async ([, work, nodes]) => {
    await using qemu = await Qemu.boot({ image, work, nodes });
    expect(await qemu.status()).toBe("running");
    await qemu.waitForSweeps(2);
    await qemu.waitForBeats(10);
    expect(problemsOf([wholeLines(qemu.serial.text)])).toEqual([]);
    const found = await Promise.all(qemu.ramPaths.map(findWorkPages));
    const { sizeMib = 64, usedMib = 0 } = work;
    const counts = found.map((pages) => pages.length);
    // The guest's program has one page of that kind to compare with, and this may be found, too.
    const total = counts.reduce((sum, count) => sum + count, 0);
    expect(total - (sizeMib + usedMib) * PAGES_PER_MIB).toBeOneOf([0, 1]);
    if (nodes === 2) for (const count of counts) expect(count).toBeGreaterThan(total / 4);
    const isRewritten = work.rateMib !== 0;
    expect(found.flat().some(({ sequence }) => sequence > 0)).toBe(isRewritten);
  });

  test("leaves nothing behind", async () => {
    const qemu = await Qemu.start({ image, isStopped: true });
    const { ramPaths, qmpPath } = qemu;
    for (const path of [...ramPaths, qmpPath]) expect(existsSync(path)).toBe(true);
    expect(await qemu.status()).toBe("prelaunch");
    await qemu[Symbol.asyncDispose]();
    for (const path of [...ramPaths, qmpPath]) expect(existsSync(path)).toBe(false);
    expect(await qemu.ended).toBe(null);
  });

  test("waits for a guest where it is told to", async () => {
    await using qemu = await Qemu.start({ image, isIncoming: true });
    expect(await qemu.status()).toBe("inmigrate");
    expect(qemu.serial.text).toBe("");
  });

  // Stopped, because QEMU 7.2 sometimes loses writes of an emulated guest that runs meanwhile.
  test("says all that belongs there when QEMU itself moves it", async () => {
    await using source = await Qemu.boot({ image, work: { sizeMib: 16 } });
    await using destination = await Qemu.start({ image, isIncoming: true });
    await source.waitForSweeps(1);
    const uri = `unix:${destination.qmpPath}.stream`;
    await destination.monitor.execute("migrate-incoming", { uri });
    await source.monitor.execute("stop");
    await source.monitor.execute("migrate", { uri });
    await destination.waitForStatus("paused");
    await destination.monitor.execute("cont");
    await destination.waitForBeats(10);
    await destination.waitForSweeps(2);
    expect(await source.status()).toBe("postmigrate");
    const texts = [source.serial.text, wholeLines(destination.serial.text)];
    expect(problemsOf(texts)).toEqual([]);
  });

  describe("notices", () => {
    let qemu: Qemu;

    beforeAll(async () => {
      qemu = await Qemu.boot({ image, work: { sizeMib: 16 } });
    });

    afterAll(async () => {
      await qemu?.[Symbol.asyncDispose]();
    });

    const broken = (): readonly string[] => readSaid(qemu.serial.text).broken;

    /** The kind of page that the guest visits last: nobody is at work on it now. */
    async function restingPage(): Promise<{ path: string; offset: number; index: number }> {
      await qemu.waitForSweeps(1);
      const path = must(qemu.ramPaths[0], "it has a RAM file");
      const pages = await findWorkPages(path);
      return { path, ...must(pages.at(-1), "it works on pages") };
    }

    test("one bit that was changed", async () => {
      const { path, offset, index } = await restingPage();
      const page = await readPage(path, offset);
      await meddle(path, offset + 1001, Uint8Array.of(page.readUInt8(1001) ^ 0x10));
      await qemu.serial.waitFor("a complaint", 60_000, () => broken().length > 0);
      expect(broken()[0]).toMatch(
        new RegExp(`page ${index} .*rewritten: .*; 1 of 64 lines are wrong$`),
      );
    });

    test("a page that is one sweep older than the others", async () => {
      const former = broken().length;
      const { path, offset, index } = await restingPage();
      const page = await readPage(path, offset);
      await qemu.waitForSweeps(1);
      await meddle(path, offset, page);
      await qemu.serial.waitFor("a complaint", 60_000, () => broken().length > former);
      expect(broken().at(former)).toMatch(
        new RegExp(`page ${index} .*; 64 of 64 lines are wrong$`),
      );
    });

    test("a page of which a part was lost", async () => {
      const former = broken().length;
      const { path, offset, index } = await restingPage();
      const page = await readPage(path, offset);
      await qemu.waitForSweeps(1);
      await meddle(path, offset + 2048, page.subarray(2048));
      await qemu.serial.waitFor("a complaint", 60_000, () => broken().length > former);
      expect(broken().at(former)).toMatch(
        new RegExp(`page ${index} .*; 32 of 64 lines are wrong$`),
      );
    });

    test("nothing else", async () => {
      expect(broken()).toHaveLength(3);
      await qemu.waitForSweeps(2);
      expect(problemsOf([wholeLines(qemu.serial.text)])).toEqual(broken());
    });
  });
});

function wholeLines(text: string): string {
  return text.slice(0, text.lastIndexOf("\n") + 1);
}
