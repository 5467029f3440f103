import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { failureOf } from "../fixtures/cli-outcome.ts";
import { GuestImage } from "./guest/image.ts";
import { addressOf, Journey, startReceive, startSend } from "./guest/journey.ts";
import type { GuestWork } from "./guest/qemu.ts";
import { Scene, STOPS, takeBack } from "./guest/scene.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

const WORK: GuestWork = { sizeMib: 16, rateMib: 16 };

const { missing, isSkipped, because } = decideReadiness("faults while a real QEMU's guest moves", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

test.skipIf(isSkipped)(`this machine can try faults on a guest of QEMU${because}`, () => {
  expect(missing).toEqual([]);
});

interface Fault {
  readonly befall: (scene: Scene) => void;
  /** Who is gone afterwards, and says nothing. */
  readonly kills?: "send" | "receive" | "destination";
}

const FAULTS: Readonly<Record<string, Fault>> = {
  "is cancelled": { befall: ({ send }) => send.kill("SIGINT") },
  "loses its link": { befall: ({ relay }) => relay.cut() },
  "loses the engine at the destination": {
    befall: ({ receive }) => receive.kill("SIGKILL"),
    kills: "receive",
  },
  "loses the QEMU at the destination": {
    befall: ({ destination }) => destination.kill("SIGKILL"),
    kills: "destination",
  },
  "loses the engine at the source": {
    befall: ({ send }) => send.kill("SIGKILL"),
    kills: "send",
  },
};

describe.skipIf(missing.length > 0)(`a real guest whose move${because}`, () => {
  let image: GuestImage;
  let journey: Journey;

  beforeAll(async () => {
    image = await GuestImage.build();
    journey = await Journey.begin({ image, work: WORK });
  });

  afterAll(async () => {
    await journey?.[Symbol.asyncDispose]();
    await image?.[Symbol.asyncDispose]();
  });

  describe.for(Object.entries(FAULTS))("%s", ([, { befall, kills }]) => {
    test.for(STOPS.map((stop) => [stop.phase, stop] as const))(
      "in phase %s runs on where it was",
      async ([, stop]) => {
        await using scene = await Scene.begin(journey, stop);
        befall(scene);
        // Nobody asks it anything as long as nothing moves.
        if (kills === "destination") scene.relay.release();
        const left = await scene.send.exit;
        if (kills === "send") {
          expect(left.signal).toBe("SIGKILL");
          await takeBack(journey.here);
        } else {
          expect(failureOf(left).remedy).not.toBe("settle");
          expect(left.status).toBe(1);
        }
        await journey.expectRunsOn({ beats: 2 });
        await scene.expectNothingArrived();
      },
    );

    test("moves after all of that", async () => {
      await journey.move();
      await journey.expectRunsOn({ beats: 2, sweeps: 1 });
    });
  });

  test("is refused by a destination that ends when it loads, and then not by another", async () => {
    // Without this timer, what the source says of it is no known device.
    await using there = await journey.destination({ args: ["-machine", "hpet=off"] });
    await using receive = startReceive(there);
    await using send = startSend(journey.here, await addressOf(receive));
    const [left, arrived] = await Promise.all([send.exit, receive.exit]);
    for (const exit of [left, arrived]) {
      expect(exit.status).toBe(1);
      expect(failureOf(exit)).toMatchObject({ at: "destination" });
      expect(failureOf(exit).remedy).not.toBe("settle");
    }
    expect(there.complaints).toContain("hpet");
    expect(await there.ended).toBe(1);
    expect(there.serial.text).toBe("");
    await journey.expectRunsOn({ beats: 2 });
    await journey.move();
    await journey.expectRunsOn({ beats: 2, sweeps: 1 });
  });

  test("is not sent by another engine before somebody took it back", async () => {
    const stop = { phase: "rest", hold: "fenced", from: "pause" } as const;
    await using scene = await Scene.begin(journey, stop);
    scene.send.kill("SIGKILL");
    await scene.send.exit;
    await using other = startSend(journey.here, "tcp:127.0.0.1:1");
    const refused = await other.exit;
    expect(failureOf(refused)).toMatchObject({ code: "GUEST_UNSUITABLE" });
    expect(refused.stdout).toContain("cancel");
    await takeBack(journey.here);
    await journey.expectRunsOn({ beats: 2 });
  });
});
