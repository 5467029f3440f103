import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { GuestImage } from "./guest/image.ts";
import { HOWEVER_LONG, Journey, LONG_BEATS, reportOf } from "./guest/journey.ts";
import { BUSY, type GuestWork, IDLE } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

/** Much of it is never touched. */
const MEMORY_MIB = 256;

/** Between two moves of one case. */
const SHORT_BEATS = 10;

const { missing, isSkipped, because } = decideReadiness("moves of a real QEMU's guest", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

test.skipIf(isSkipped)(`this machine can move a guest of QEMU${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`a guest of an unmodified QEMU moves${because}`, () => {
  let image: GuestImage;

  beforeAll(async () => {
    image = await GuestImage.build();
  });

  afterAll(async () => {
    await image?.[Symbol.asyncDispose]();
  });

  test.for<[string, GuestWork, 1 | 2]>([
    ["idle", IDLE, 1],
    ["busy", BUSY, 1],
    ["busy, with RAM in two NUMA backends", BUSY, 2],
  ])("and is whole for ten seconds: %s", async ([, work, nodes]) => {
    await using journey = await Journey.begin({ image, work, nodes, memoryMib: MEMORY_MIB });
    const { channels, rounds } = reportOf((await journey.move()).source);
    // What the guest has never touched is not read, in no round.
    const readBytes = channels.reduce((sum, { scan }) => sum + scan.readBytes, 0);
    expect(readBytes).toBeGreaterThan(0);
    expect(readBytes).toBeLessThan(0.9 * rounds.length * MEMORY_MIB * MIB);
    await journey.expectRunsOn({ beats: LONG_BEATS, sweeps: 2 });
  });

  test("there and back again, three times", async () => {
    await using journey = await Journey.begin({ image, work: BUSY });
    for (let time = 1; time <= 3; time += 1) {
      for (const _way of ["there", "back"]) {
        await journey.move({ flags: ["--channels", "2"], sourceFlags: HOWEVER_LONG });
        await journey.expectRunsOn({ beats: SHORT_BEATS });
      }
    }
    // Of whatever move a page was harmed by, it is found now.
    await journey.expectRunsOn({ beats: LONG_BEATS, sweeps: 2 });
  });

  test("while it is stopped, and stays stopped", async () => {
    await using journey = await Journey.begin({ image, work: IDLE });
    await journey.here.monitor.execute("stop");
    await journey.move({ arrives: "paused" });
    expect(journey.here.serial.text).toBe("");
    await journey.here.monitor.execute("cont");
    await journey.expectRunsOn({ beats: LONG_BEATS });
  });
});
