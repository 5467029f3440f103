import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { GuestImage } from "./guest/image.ts";
import { Journey, type Move } from "./guest/journey.ts";
import { type GuestWork, IDLE } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

/** Ten seconds of the guest's own time. */
const LONG_BEATS = 100;
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
    ["busy, with RAM in two NUMA backends", {}, 2],
  ])("%s", async ([, work, nodes]) => {
    await using journey = await Journey.begin({ image, work, nodes, memoryMib: 256 });
    await journey.move();
    await journey.expectRunsOn({ beats: LONG_BEATS, sweeps: 2 });
  });

  describe("busy", () => {
    let journey: Journey;

    beforeAll(async () => {
      journey = await Journey.begin({ image });
    });

    afterAll(async () => {
      await journey?.[Symbol.asyncDispose]();
    });

    test("and is whole for ten seconds", async () => {
      await journey.move();
      await journey.expectRunsOn({ beats: LONG_BEATS, sweeps: 3 });
    });

    test.for<[string, Move]>([
      ["over one channel", { flags: ["--channels", "1"] }],
      ["over four channels", { flags: ["--channels", "4"] }],
      ["with zstd", { flags: ["--compression", "zstd"] }],
      ["with deflate", { flags: ["--compression", "deflate"] }],
      ["with whatever pays", { flags: ["--compression", "auto"] }],
      ["with deltas", { flags: ["--xbzrle"] }],
      ["with all of it", { flags: ["--xbzrle", "--compression", "auto", "--channels", "4"] }],
      [
        "with checksums, to a QEMU that was told not to run",
        {
          flags: ["--checksum"],
          destination: { isStopped: true },
        },
      ],
    ])("%s", async ([, move]) => {
      await journey.move(move);
      await journey.expectRunsOn({ beats: SHORT_BEATS, sweeps: 1 });
    });
  });

  test("there and back again, three times", async () => {
    await using journey = await Journey.begin({ image, work: { sizeMib: 16, rateMib: 16 } });
    for (let time = 1; time <= 3; time += 1) {
      for (const way of ["there", "back"]) {
        await journey.move();
        await journey.expectRunsOn({ beats: SHORT_BEATS, sweeps: way === "back" ? 1 : 0 });
      }
    }
  });

  test("while it is stopped, and stays stopped", async () => {
    await using journey = await Journey.begin({ image, work: IDLE });
    await journey.here.monitor.execute("stop");
    await journey.move({ arrives: "paused" });
    expect(journey.here.serial.text).toBe("");
    await journey.here.monitor.execute("cont");
    await journey.expectRunsOn({ beats: SHORT_BEATS });
  });
});
