import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "../../base/assert.ts";
import type { FailureCode } from "../../base/errors.ts";
import { MIB } from "../../base/units.ts";
import { failureOf } from "../fixtures/cli-outcome.ts";
import { GuestImage } from "./guest/image.ts";
import { addressOf, HOWEVER_LONG, Journey, startReceive, startSend } from "./guest/journey.ts";
import { BUSY } from "./guest/qemu.ts";
import { lastPhase, nameOf, REST, Scene, STOPS, takeBack } from "./guest/scene.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

const { missing, isSkipped, because } = decideReadiness("faults while a real QEMU's guest moves", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

test.skipIf(isSkipped)(`this machine can try faults on a guest of QEMU${because}`, () => {
  expect(missing).toEqual([]);
});

interface Fault {
  readonly name: string;
  readonly befall: (scene: Scene) => void;
  /** What the source fails with, if it lives. */
  readonly codes: readonly FailureCode[];
}

const FAULTS: readonly Fault[] = [
  { name: "is cancelled", befall: ({ send }) => send.kill("SIGINT"), codes: ["CANCELLED"] },
  {
    name: "is cancelled at the destination",
    befall: ({ receive }) => receive.kill("SIGINT"),
    // Before it was introduced, and where its word comes behind a frame that is held back.
    codes: ["CANCELLED", "CHANNEL_LOST"],
  },
  { name: "loses its link", befall: ({ relay }) => relay.cut(), codes: ["CHANNEL_LOST"] },
  {
    name: "loses the engine at the destination",
    befall: ({ receive }) => receive.kill("SIGKILL"),
    codes: ["CHANNEL_LOST"],
  },
  {
    name: "loses the QEMU at the destination",
    befall: ({ destination }) => destination.kill("SIGKILL"),
    // What the destination says of it may come behind a frame that is held back.
    codes: ["HYPERVISOR_LOST", "CHANNEL_LOST"],
  },
  { name: "loses the engine at the source", befall: ({ send }) => send.kill("SIGKILL"), codes: [] },
];

/** All faults, each phase beginning with another: so another one is followed by success. */
function faultsFrom(first: number): readonly Fault[] {
  return FAULTS.map((_, index) => must(FAULTS[(first + index) % FAULTS.length], "it wraps"));
}

describe.skipIf(missing.length > 0)(`a real guest whose move${because}`, () => {
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

  describe.for(STOPS.map((stop, index) => [nameOf(stop), stop, index] as const))(
    "in phase %s",
    ([, stop, index]) => {
      test.for(faultsFrom(index).map((fault) => [fault.name, fault] as const))(
        "%s, runs on where it was",
        async ([, { befall, codes }]) => {
          await using scene = await Scene.begin(journey, stop);
          befall(scene);
          const left = await scene.send.exit;
          expect(lastPhase(left.events)).toBe(stop.phases.source);
          if (codes.length > 0) {
            expect(failureOf(left).code).toBeOneOf([...codes]);
            expect(left.status).toBe(1);
          } else {
            expect(left.signal).toBe("SIGKILL");
            await takeBack(journey.here);
          }
          await journey.expectRunsOn({ beats: 2 });
          await scene.expectNothingArrived();
        },
      );

      test("moves to a fresh QEMU after all of that", async () => {
        await journey.move({ sourceFlags: HOWEVER_LONG });
        await journey.expectRunsOn({ beats: 2, sweeps: 1 });
      });
    },
  );

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
    await journey.move({ sourceFlags: HOWEVER_LONG });
    await journey.expectRunsOn({ beats: 2, sweeps: 2 });
  });

  test("is not sent by another engine before somebody took it back", async () => {
    await using scene = await Scene.begin(journey, REST);
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
