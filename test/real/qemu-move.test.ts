import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "../../base/assert.ts";
import { MIB } from "../../base/units.ts";
import type { CliExit } from "../run-cli.ts";
import { GuestImage } from "./guest/image.ts";
import { HOWEVER_LONG, Journey, type Move } from "./guest/journey.ts";
import { BUSY, type GuestWork, IDLE } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

/** Ten seconds of the guest's own time, after the last move of each case. */
const LONG_BEATS = 100;
/** Much of it is never touched. */
const MEMORY_MIB = 256;

/** Between two moves of one case. */
const SHORT_BEATS = 10;

/** What a move must have done if it obeyed its flags. */
interface Expected {
  readonly channels?: number;
  readonly pages?: readonly ("compressed" | "delta")[];
}

/** As much of a report as this test looks at. */
interface Report {
  readonly channels: readonly {
    readonly lane: string;
    readonly sentBytes: number;
    readonly scan: { readonly readBytes: number };
  }[];
  readonly rounds: readonly unknown[];
  readonly pages: { readonly compressed: number; readonly delta: number };
}

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

  describe("while it writes,", () => {
    let journey: Journey;

    beforeAll(async () => {
      journey = await Journey.begin({ image, work: BUSY });
    });

    afterAll(async () => {
      await journey?.[Symbol.asyncDispose]();
    });

    test.for<[string, Move, Expected]>([
      ["over one channel", { flags: ["--channels", "1"] }, { channels: 1 }],
      ["over four channels", { flags: ["--channels", "4"] }, { channels: 4 }],
      ["with zstd", { flags: ["--compression", "zstd"] }, { pages: ["compressed"] }],
      ["with deflate", { flags: ["--compression", "deflate"] }, { pages: ["compressed"] }],
      ["with whatever pays", { flags: ["--compression", "auto"] }, {}],
      ["with deltas", { flags: ["--xbzrle"] }, { pages: ["delta"] }],
      [
        "with all of it",
        { flags: ["--xbzrle", "--compression", "zstd", "--channels", "4"] },
        { channels: 4, pages: ["delta", "compressed"] },
      ],
      [
        "with checksums, to a QEMU that was told not to run",
        { flags: ["--checksum"], destination: { isStopped: true } },
        {},
      ],
    ])("%s", async ([, move, expected]) => {
      const { source } = await journey.move({ ...move, sourceFlags: HOWEVER_LONG });
      const { channels, pages } = reportOf(source);
      for (const kind of expected.pages ?? []) expect(pages[kind]).toBeGreaterThan(0);
      const bulk = channels.filter(({ lane, sentBytes }) => lane === "bulk" && sentBytes > MIB);
      if (expected.channels !== undefined) expect(bulk).toHaveLength(expected.channels);
      await journey.expectRunsOn({ beats: LONG_BEATS, sweeps: 2 });
    });
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

function reportOf({ events }: CliExit): Report {
  return must(events.at(-1), "a command ends with an event")["report"] as Report;
}
