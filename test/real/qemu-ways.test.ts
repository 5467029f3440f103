import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { GuestImage } from "./guest/image.ts";
import { HOWEVER_LONG, Journey, LONG_BEATS, type Move, reportOf } from "./guest/journey.ts";
import { BUSY } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

/** What a move must have done if it obeyed its flags. */
interface Expected {
  readonly channels?: number;
  readonly pages?: readonly ("compressed" | "delta")[];
}

const { missing, isSkipped, because } = decideReadiness("ways of moving a real QEMU's guest", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

test.skipIf(isSkipped)(`this machine can move a guest of QEMU in every way${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`a guest of QEMU moves while it writes,${because}`, () => {
  let image: GuestImage;
  let journey: Journey;

  beforeAll(async () => {
    image = await GuestImage.build();
    journey = await Journey.begin({ image, work: BUSY });
  });

  afterAll(async () => {
    await journey?.[Symbol.asyncDispose]();
    await image?.[Symbol.asyncDispose]();
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
