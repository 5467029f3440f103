import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { migrateIn } from "../../engine/destination.ts";
import { migrateOut, type SourcePhase } from "../../engine/source.ts";
import type { Report } from "../../engine/statistics.ts";
import { QemuDestination, QemuSource } from "../../hosts/qemu.ts";
import { failureOf } from "../fixtures/cli-outcome.ts";
import { runCli } from "../run-cli.ts";
import { GuestImage } from "./guest/image.ts";
import { addressOf, expectCompleted, Journey, startReceive, startSend } from "./guest/journey.ts";
import { IDLE, Qemu, type QemuRequest } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { surveyRam } from "./ram-file.ts";
import { decideReadiness, MEMORY_FOLDER, missingRoom } from "./requirements.ts";

/** A file without a name, as QEMU makes one in a folder: it must go with QEMU. */
const PRIVATE_PART = [
  ...["-m", "192M,slots=1,maxmem=1G"],
  ...["-object", `memory-backend-file,id=more,size=64M,mem-path=${MEMORY_FOLDER},share=off`],
  ...["-device", "pc-dimm,memdev=more"],
];

const { missing, isSkipped, because } = decideReadiness("the host for a real QEMU", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(768 * MIB),
]);

test.skipIf(isSkipped)(`this machine can try the host for QEMU${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`a real QEMU${because}`, () => {
  let image: GuestImage;
  let journey: Journey;

  beforeAll(async () => {
    image = await GuestImage.build();
    journey = await Journey.begin({ image, work: IDLE });
  });

  afterAll(async () => {
    await journey?.[Symbol.asyncDispose]();
    await image?.[Symbol.asyncDispose]();
  });

  /** Runs both ends as commands; the destination's QEMU is this. */
  async function attempt(there: Qemu): Promise<{ sent: object; received: object }> {
    await using receive = startReceive(there);
    await using send = startSend(journey.here, await addressOf(receive));
    const [sent, received] = [failureOf(await send.exit), failureOf(await receive.exit)];
    expect(await journey.here.status()).toBe("running");
    return { sent, received };
  }

  describe("refuses as a destination, before anything is touched,", () => {
    test.for<[what: string, different: Partial<QemuRequest>, problem: RegExp]>([
      ["another machine", { args: ["-machine", "q35"] }, /-machine pc-i440fx/],
      ["more processors", { args: ["-smp", "2"] }, /start it with -smp 1/],
      ["more RAM", { memoryMib: 224 }, /192 MiB at the source and 224 MiB at the destination/],
      ["RAM in other backends", { nodes: 2 }, /"ram1" is missing at the source/],
    ])("%s", async ([, different, problem]) => {
      await using there = await journey.destination(different);
      const { sent } = await attempt(there);
      expect(sent).toMatchObject({ code: "GUEST_MISMATCH", at: "destination" });
      expect(sent).toHaveProperty("message", expect.stringMatching(problem));
      expect(await there.status()).toBe("inmigrate");
      await journey.expectRunsOn({ beats: 1 });
    });

    test("one whose RAM is private", async () => {
      await using there = await journey.destination({ isPrivate: true });
      const untouched = await settingsOf(there);
      const refused = await runCli([
        ...["receive", "tcp:127.0.0.1:0", "--qemu", there.qmpPath, "--json"],
      ]);
      expect(failureOf(refused)).toMatchObject({
        code: "GUEST_UNSUITABLE",
        message: expect.stringMatching(/"ram0" is private to QEMU: add share=on/),
      });
      expect(await settingsOf(there)).toEqual(untouched);
    });

    test("one that runs, and one that is asked to send what it waits for", async () => {
      const running = await runCli([
        "receive",
        "tcp:127.0.0.1:0",
        "--qemu",
        journey.here.qmpPath,
        "--json",
      ]);
      expect(failureOf(running)).toMatchObject({
        code: "GUEST_UNSUITABLE",
        message: expect.stringMatching(/start it afresh, with -incoming defer/),
      });
      await using there = await journey.destination();
      const waiting = await runCli(["send", "tcp:127.0.0.1:1", "--qemu", there.qmpPath, "--json"]);
      expect(failureOf(waiting)).toMatchObject({
        code: "GUEST_UNSUITABLE",
        message: expect.stringMatching(/it waits for a guest itself/),
      });
    });
  });

  describe("refuses as a source, before anything is touched,", () => {
    test.for<[what: string, request: Partial<QemuRequest>, problem: RegExp]>([
      [
        "a device that cannot migrate",
        { args: ["-device", "nvme,serial=1"] },
        /nvme: remove that device/,
      ],
      [
        "RAM of which a part has no file",
        {
          args: [
            ...["-m", "192M,slots=1,maxmem=1G"],
            ...["-object", "memory-backend-ram,id=more,size=64M"],
            ...["-device", "pc-dimm,memdev=more"],
          ],
        },
        /"more" \(memory-backend-ram\) has no file/,
      ],
      ["RAM that is private", { isPrivate: true }, /"ram0" is private to QEMU: add share=on/],
      [
        "RAM of which a part is private",
        { args: PRIVATE_PART },
        /"more" is private to QEMU: add share=on/,
      ],
    ])("%s", async ([, request, problem]) => {
      await using qemu = await Qemu.start({ image, isStopped: true, ...request });
      const untouched = await settingsOf(qemu);
      const { status, ...exit } = await runCli([
        ...["send", "tcp:127.0.0.1:1", "--qemu", qemu.qmpPath, "--json"],
      ]);
      expect(failureOf({ status, ...exit })).toMatchObject({
        code: "GUEST_UNSUITABLE",
        message: expect.stringMatching(problem),
      });
      expect(status).toBe(1);
      expect(await settingsOf(qemu)).toEqual(untouched);
    });

    test("a monitor that has a client already", async () => {
      const first = await QemuSource.open(journey.here.qmpPath);
      const second = runCli(["send", "tcp:127.0.0.1:1", "--qemu", journey.here.qmpPath, "--json"]);
      expect(failureOf(await second)).toMatchObject({
        code: "HYPERVISOR_UNREACHABLE",
        message: expect.stringMatching(/is another client connected/),
      });
      await first.close();
    });
  });

  test("that ends when it loads is told as that, and the next attempt succeeds", async () => {
    const args = ["-device", "virtio-rng-pci"];
    await using special = await Journey.begin({ image, work: IDLE, args });
    await using there = await special.destination({ args: [] });
    await using receive = startReceive(there);
    await using send = startSend(special.here, await addressOf(receive));
    expect(failureOf(await send.exit)).toMatchObject({
      code: "HYPERVISOR_LOST",
      at: "destination",
    });
    expect(failureOf(await receive.exit)).toHaveProperty(
      "leftover",
      expect.stringMatching(/QEMU has ended/),
    );
    expect(await there.ended).toBe(1);
    expect(there.complaints).toMatch(/virtio-rng/);
    await special.expectRunsOn({ beats: 2 });
    await special.move();
    await special.expectRunsOn({ beats: 2, sweeps: 1 });
  });

  test("moves the memory of a display itself", async () => {
    const args = ["-device", "VGA"];
    await using shown = await Journey.begin({ image, work: IDLE, args });
    await shown.move();
    await shown.expectRunsOn({ beats: 2, sweeps: 1 });
  });

  test.for<SourcePhase>(["precopy", "rest", "devices", "ready"])(
    "goes on when it is cancelled in phase %s, and moves with the same host then",
    async (cancelled) => {
      const source = await QemuSource.open(journey.here.qmpPath);
      await using there = await journey.destination();
      const destination = await QemuDestination.open(there.qmpPath);
      const controller = new AbortController();
      const onPhase = (phase: SourcePhase): void => {
        if (phase === cancelled) controller.abort();
      };
      const failed = migrate(source, destination, { signal: controller.signal, onPhase });
      await expect(failed).rejects.toMatchObject({ code: "CANCELLED" });
      await destination.close();
      expect(await journey.here.status()).toBe("running");
      await journey.expectRunsOn({ beats: 1 });

      const fresh = await journey.destination();
      const second = await QemuDestination.open(fresh.qmpPath);
      const report = await migrate(source, second, {});
      expectPlausible(report);
      await Promise.all([source.close(), second.close()]);
      await journey.goOnAt(fresh);
      await journey.expectRunsOn({ beats: 2 });
    },
  );

  test("that is stopped moves to the last byte, and is as stopped after a failure", async () => {
    await journey.here.monitor.execute("stop");
    await using other = await journey.destination({ args: ["-smp", "2"] });
    await using refused = startReceive(other);
    await using vain = startSend(journey.here, await addressOf(refused));
    expect(failureOf(await vain.exit).code).toBe("GUEST_MISMATCH");
    expect(await journey.here.status()).toBe("paused");

    const source = await QemuSource.open(journey.here.qmpPath);
    await using aborted = await journey.destination();
    const destination = await QemuDestination.open(aborted.qmpPath);
    const controller = new AbortController();
    const onPhase = (phase: SourcePhase): void => {
      if (phase === "ready") controller.abort();
    };
    const failed = migrate(source, destination, { signal: controller.signal, onPhase });
    await expect(failed).rejects.toMatchObject({ code: "CANCELLED" });
    await Promise.all([source.close(), destination.close()]);
    expect(await journey.here.status()).toBe("paused");

    const there = await journey.destination();
    await using receive = startReceive(there);
    await using send = startSend(journey.here, await addressOf(receive));
    for (const exit of [await send.exit, await receive.exit]) expectCompleted(exit);
    const [sent = "", arrived = ""] = [journey.here.ramPaths[0], there.ramPaths[0]];
    const { sha256, nonzeroBytes } = await surveyRam(sent);
    expect(await surveyRam(arrived)).toMatchObject({ sha256, nonzeroBytes });
    await journey.goOnAt(there, "paused");
    await there.monitor.execute("cont");
    await journey.expectRunsOn({ beats: 2, sweeps: 1 });
  });
});

/** What an engine would have touched. */
async function settingsOf({ monitor }: Qemu): Promise<unknown[]> {
  const commands = ["query-status", "query-migrate", "query-migrate-capabilities"];
  return await Promise.all(commands.map((command) => monitor.execute(command)));
}

async function migrate(
  source: QemuSource,
  destination: QemuDestination,
  out: { signal?: AbortSignal; onPhase?: (phase: SourcePhase) => void },
): Promise<Report> {
  const listening = Promise.withResolvers<string>();
  const arriving = migrateIn(destination, "tcp:127.0.0.1:0", { onListening: listening.resolve });
  const arrived = arriving.catch(() => {}); // The source says what happened, as far as it matters.
  const leaving = migrateOut(source, await listening.promise, { channels: 2, ...out });
  try {
    return await leaving;
  } finally {
    await arrived;
  }
}

/** QEMU stopped the guest after it was asked to, and ran it before we heard of that. */
function expectPlausible({ hypervisor, downtimeMs }: Report): void {
  expect(hypervisor).toBeDefined();
  const { downtimeMs: wholeMs = 0, ...parts } = hypervisor ?? {};
  expect(wholeMs).toBeGreaterThan(0);
  expect(wholeMs).toBeLessThanOrEqual(downtimeMs + 1);
  expect(Object.values(parts).reduce((sum, part) => sum + part, 0)).toBeCloseTo(wholeMs, 6);
  for (const part of Object.values(parts)) expect(part).toBeGreaterThanOrEqual(0);
}
