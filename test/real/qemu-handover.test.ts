import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { failureOf } from "../fixtures/cli-outcome.ts";
import { GuestImage } from "./guest/image.ts";
import { expectCompleted, Journey } from "./guest/journey.ts";
import { BUSY, type GuestWork } from "./guest/qemu.ts";
import { nameOf, READY, Scene, STOPS, type Stop } from "./guest/scene.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

/** A sweep takes a second, so that many moves can be followed by one each. */
const SMALL_WORK: GuestWork = { sizeMib: 8, rateMib: 8 };

/** The source has given the guest away, and the destination does not know it yet. */
const GIVEN: Stop = {
  phases: { source: "commit", destination: "commit" },
  held: { frame: "commit" },
  guest: "postmigrate",
};
/** The destination runs the guest, and the source does not know it yet. */
const RUNNING: Stop = {
  phases: { source: "commit", destination: "resume" },
  held: { frame: "running" },
  guest: "postmigrate",
};

const AFTER_READY = [
  { name: "before COMMIT arrives", stop: GIVEN },
  { name: "when it runs there", stop: RUNNING },
];

const { missing, isSkipped, because } = decideReadiness("a real guest between two QEMUs", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

test.skipIf(isSkipped)(`this machine can hand a guest of QEMU over${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`a real guest between two QEMUs${because}`, () => {
  let image: GuestImage;

  beforeAll(async () => {
    image = await GuestImage.build();
  });

  afterAll(async () => {
    await image?.[Symbol.asyncDispose]();
  });

  describe("that is given away", () => {
    let journey: Journey;

    beforeAll(async () => {
      journey = await Journey.begin({ image, work: SMALL_WORK });
    });

    afterAll(async () => {
      await journey?.[Symbol.asyncDispose]();
    });

    async function expectWentTo(scene: Scene): Promise<void> {
      await scene.expectStill(scene.source);
      await journey.goneTo(scene.takeDestination());
      await journey.expectRunsOn({ beats: 2, sweeps: 1 });
    }

    test.for([false, true])("runs nowhere before COMMIT (with -S: %s)", async (isStopped) => {
      await using scene = await Scene.begin(journey, READY, { isStopped });
      for (const qemu of [scene.source, scene.destination]) await scene.expectStill(qemu);
      expect(scene.destination.serial.text).toBe("");
      scene.relay.release();
      for (const end of [scene.send, scene.receive]) expectCompleted(await end.exit);
      await expectWentTo(scene);
    });

    test.for(AFTER_READY)("is there when somebody cancels $name", async ({ stop }) => {
      await using scene = await Scene.begin(journey, stop);
      scene.send.kill("SIGINT");
      scene.relay.release();
      for (const end of [scene.send, scene.receive]) expectCompleted(await end.exit);
      await expectWentTo(scene);
    });

    test.for(["link", "receive"] as const)("stays there when the %s is lost", async (lost) => {
      await using scene = await Scene.begin(journey, RUNNING);
      if (lost === "link") scene.relay.cut();
      else scene.receive.kill("SIGKILL");
      expect(failureOf(await scene.send.exit)).toMatchObject({
        code: "HANDOVER_UNKNOWN",
        remedy: "settle",
      });
      await expectWentTo(scene);
    });

    test("stays there when the engine at the source is killed", async () => {
      await using scene = await Scene.begin(journey, RUNNING);
      scene.send.kill("SIGKILL");
      await scene.send.exit;
      await expectWentTo(scene);
    });

    test.for(AFTER_READY)(
      "is there when the QEMU at the source is killed $name",
      async ({ stop }) => {
        await using scene = await Scene.begin(journey, stop);
        scene.source.kill("SIGKILL");
        scene.relay.release();
        for (const end of [scene.send, scene.receive]) expectCompleted(await end.exit);
        await expectWentTo(scene);
      },
    );

    test.for(["link", "receive", "send"] as const)(
      "runs nowhere when COMMIT is lost with the %s, until somebody decides",
      async (lost) => {
        await using scene = await Scene.begin(journey, GIVEN);
        if (lost === "link") scene.relay.cut();
        else scene[lost].kill("SIGKILL");
        const left = await scene.send.exit;
        if (lost === "send") expect(left.signal).toBe("SIGKILL");
        else expect(failureOf(left)).toMatchObject({ code: "HANDOVER_UNKNOWN" });
        await scene.expectNothingArrived();
        await scene.expectStill(scene.source);
        await scene.source.monitor.execute("cont");
        await journey.expectRunsOn({ beats: 2, sweeps: 1 });
      },
    );

    test("runs nowhere when the QEMU at the destination ends before COMMIT comes", async () => {
      await using scene = await Scene.begin(journey, GIVEN);
      scene.destination.kill("SIGKILL");
      await scene.destination.ended;
      scene.relay.release();
      expect(failureOf(await scene.send.exit)).toMatchObject({ code: "HANDOVER_UNKNOWN" });
      await scene.expectNothingArrived();
      await scene.expectStill(scene.source);
      await scene.source.monitor.execute("cont");
      await journey.expectRunsOn({ beats: 2, sweeps: 1 });
    });
  });

  test("does not come to life again when the QEMU that runs it is killed", async () => {
    await using journey = await Journey.begin({ image, work: SMALL_WORK });
    await using scene = await Scene.begin(journey, RUNNING);
    scene.destination.kill("SIGKILL");
    await scene.destination.ended;
    scene.relay.release();
    // It ran there, of which the source has heard: it went the way of all that runs.
    expectCompleted(await scene.send.exit);
    expect(await scene.source.status()).toBe("postmigrate");
  });

  describe("whose QEMU is killed at the source", () => {
    /** Null: it is lost, and the next one must boot. */
    let journey: Journey | null = null;

    afterAll(async () => {
      await journey?.[Symbol.asyncDispose]();
    });

    // From the last phase to the first: those in which it survives need no other guest.
    test.for(STOPS.map((stop) => [nameOf(stop), stop] as const).toReversed())(
      "in phase %s does not come to life twice",
      async ([, stop]) => {
        journey ??= await Journey.begin({ image, work: BUSY });
        await using scene = await Scene.begin(journey, stop);
        scene.source.kill("SIGKILL");
        await scene.source.ended;
        const isSaved = stop.phases.source === "ready";
        // Nobody asks it anything as long as nothing moves; its own last word stays unsaid.
        if (isSaved) scene.release();
        else scene.relay.release();
        const left = await scene.send.exit;
        if (isSaved) {
          for (const end of [left, await scene.receive.exit]) expectCompleted(end);
          await journey.goneTo(scene.takeDestination());
          return await journey.expectRunsOn({ beats: 2, sweeps: 1 });
        }
        await journey[Symbol.asyncDispose]();
        journey = null;
        expect(left.status).toBe(1);
        expect(failureOf(left).code).toBeOneOf(["HYPERVISOR_LOST", "GUEST_NOT_RESTORED"]);
        await scene.expectNothingArrived();
      },
    );
  });
});
