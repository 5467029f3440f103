import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { failureOf } from "../fixtures/cli-outcome.ts";
import { GuestImage } from "./guest/image.ts";
import { expectCompleted, Journey } from "./guest/journey.ts";
import type { GuestWork } from "./guest/qemu.ts";
import { Scene, STOPS, type Stop } from "./guest/scene.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

const WORK: GuestWork = { sizeMib: 8, rateMib: 8 };

/** The destination could run the guest, and the source does not know it yet. */
const READY: Stop = { phase: "ready", hold: "ready" };
/** The source has given the guest away, and the destination does not know it yet. */
const GIVEN: Stop = { phase: "commit", hold: "commit" };
/** The destination runs the guest, and the source does not know it yet. */
const RUNNING: Stop = { phase: "commit", hold: "running" };

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
      journey = await Journey.begin({ image, work: WORK });
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
      await scene.receive.waitFor("phase", (event) => event["phase"] === "commit");
      for (const qemu of [scene.source, scene.destination]) await scene.expectStill(qemu);
      expect(scene.destination.serial.text).toBe("");
      scene.relay.release();
      for (const end of [scene.send, scene.receive]) expectCompleted(await end.exit);
      await expectWentTo(scene);
    });

    test("is there when somebody cancels too late", async () => {
      await using scene = await Scene.begin(journey, RUNNING);
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

    test("stays there when the QEMU at the source is killed", async () => {
      await using scene = await Scene.begin(journey, RUNNING);
      scene.source.kill("SIGKILL");
      scene.relay.release();
      for (const end of [scene.send, scene.receive]) expectCompleted(await end.exit);
      await expectWentTo(scene);
    });

    test("runs nowhere when COMMIT is lost, until somebody decides", async () => {
      await using scene = await Scene.begin(journey, GIVEN);
      scene.relay.cut();
      expect(failureOf(await scene.send.exit)).toMatchObject({ code: "HANDOVER_UNKNOWN" });
      await scene.expectNothingArrived();
      await scene.expectStill(scene.source);
      await scene.source.monitor.execute("cont");
      await journey.expectRunsOn({ beats: 2, sweeps: 1 });
    });

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

  describe("whose QEMU is killed at the source", () => {
    test.for(STOPS.map((stop) => [stop.phase, stop] as const))(
      "in phase %s does not come to life at the destination",
      async ([, stop]) => {
        await using journey = await Journey.begin({ image, work: WORK });
        await using scene = await Scene.begin(journey, stop);
        scene.source.kill("SIGKILL");
        await scene.source.ended;
        scene.relay.release();
        const left = await scene.send.exit;
        if (left.status === 0) {
          // All of it was saved before, so it went over.
          expect(["devices", "ready"]).toContain(stop.phase);
          await journey.goneTo(scene.takeDestination());
          return await journey.expectRunsOn({ beats: 2, sweeps: 1 });
        }
        expect(left.status).toBe(1);
        expect(failureOf(left).message).not.toBe("");
        await scene.expectNothingArrived();
      },
    );
  });
});
