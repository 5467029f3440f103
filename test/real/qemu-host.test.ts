import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { PauseWatch } from "../../bench/qemu/pause-watch.ts";
import { migrateIn } from "../../engine/destination.ts";
import { migrateOut, type SourcePhase } from "../../engine/source.ts";
import type { Report } from "../../engine/statistics.ts";
import { QemuDestination, QemuSource } from "../../hosts/qemu.ts";
import { failureOf } from "../fixtures/cli-outcome.ts";
import { runCli } from "../run-cli.ts";
import { HugePages } from "./guest/huge-pages.ts";
import { GuestImage } from "./guest/image.ts";
import { addressOf, expectCompleted, Journey, startReceive, startSend } from "./guest/journey.ts";
import { IDLE, Qemu, type QemuRequest } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { surveyRam } from "./ram-file.ts";
import { decideReadiness, MEMORY_FOLDER, missingRoom } from "./requirements.ts";

/** By so much two readers may differ about when two events were: they know the date to a millisecond. */
const CLOCKS_MS = 3;

/** Of 2 MiB each, for a guest of the usual size. */
const HUGE_PAGES = 96;

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

const huge = decideReadiness("a real QEMU's RAM in huge pages", HugePages.missing(2 * HUGE_PAGES));

test.skipIf(isSkipped)(`this machine can try the host for QEMU${because}`, () => {
  expect(missing).toEqual([]);
});

test.skipIf(huge.isSkipped)(`this machine can have huge pages${huge.because}`, () => {
  expect(huge.missing).toEqual([]);
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

  /** Runs both ends as commands; the destination's QEMU is this, and is as it was afterwards. */
  async function attempt(there: Qemu): Promise<{ sent: object; received: object }> {
    const untouched = await traitsOf(there);
    await using receive = startReceive(there);
    await using send = startSend(journey.here, await addressOf(receive));
    const [sent, received] = [failureOf(await send.exit), failureOf(await receive.exit)];
    expect(await journey.here.status()).toBe("running");
    expect(await traitsOf(there)).toEqual(untouched);
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
      [
        "RAM in no file at all",
        { nodes: 0 },
        /"pc.ram" \(memory-backend-ram\) has no file: make it a memory-backend-file/,
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

  describe.skipIf(huge.missing.length > 0)(`whose RAM lies in huge pages${huge.because}`, () => {
    test("leaves them, which is told, and is refused where it would arrive in others", async () => {
      using pages = HugePages.reserve(2 * HUGE_PAGES);
      const inHuge = { image, work: IDLE, ramFolder: pages.folder };
      await using huge = await Journey.begin(inHuge);
      await using there = await huge.destination();
      const refused = await runCli([
        ...["receive", "tcp:127.0.0.1:0", "--qemu", there.qmpPath, "--json"],
      ]);
      expect(failureOf(refused)).toMatchObject({
        code: "GUEST_UNSUITABLE",
        message: expect.stringMatching(/"ram0" lies in hugetlbfs, .*: use a file in \/dev\/shm/),
      });
      const { source } = await huge.move({ destination: { ramFolder: null } });
      expect(source.events).toContainEqual({
        event: "note",
        text: 'RAM backend "ram0" lies in pages of 2.00 MiB and leaves in those of 4.00 KiB',
      });
      await huge.expectRunsOn({ beats: 2, sweeps: 1 });
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
      await using source = await QemuSource.open(journey.here.qmpPath);
      await using there = await journey.destination();
      await using destination = await QemuDestination.open(there.qmpPath);
      const controller = new AbortController();
      const onPhase = (phase: SourcePhase): void => {
        if (phase === cancelled) controller.abort();
      };
      const failed = migrate(source, destination, { signal: controller.signal, onPhase });
      await expect(failed).rejects.toMatchObject({ code: "CANCELLED" });
      await destination.close();
      expect(await journey.here.status()).toBe("running");
      await journey.expectRunsOn({ beats: 1 });

      await using undo = new AsyncDisposableStack();
      const fresh = undo.use(await journey.destination());
      await using second = await QemuDestination.open(fresh.qmpPath);
      using watch = new PauseWatch(journey.here.monitor, fresh.monitor);
      const report = await migrate(source, second, {});
      expectPlausible(report);
      // Of the same two events, to which QEMU itself gives their time. How long ago the second one was
      // the source learns by a message, whose way it counts; it never tells too little.
      const untoldMs = (await watch.pauseMs()) - (report.hypervisor?.downtimeMs ?? 0);
      expect(untoldMs).toBeLessThan(CLOCKS_MS);
      await Promise.all([source.close(), second.close()]);
      undo.move();
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

    await using source = await QemuSource.open(journey.here.qmpPath);
    await using aborted = await journey.destination();
    await using destination = await QemuDestination.open(aborted.qmpPath);
    const controller = new AbortController();
    const onPhase = (phase: SourcePhase): void => {
      if (phase === "ready") controller.abort();
    };
    const failed = migrate(source, destination, { signal: controller.signal, onPhase });
    await expect(failed).rejects.toMatchObject({ code: "CANCELLED" });
    await Promise.all([source.close(), destination.close()]);
    expect(await journey.here.status()).toBe("paused");

    await using undo = new AsyncDisposableStack();
    const there = undo.use(await journey.destination());
    await using receive = startReceive(there);
    await using send = startSend(journey.here, await addressOf(receive));
    for (const exit of [await send.exit, await receive.exit]) expectCompleted(exit);
    const [sent = "", arrived = ""] = [journey.here.ramPaths[0], there.ramPaths[0]];
    const { sha256, nonzeroBytes } = await surveyRam(sent);
    expect(await surveyRam(arrived)).toMatchObject({ sha256, nonzeroBytes });
    undo.move();
    await journey.goOnAt(there, "paused");
    await there.monitor.execute("cont");
    await journey.expectRunsOn({ beats: 2, sweeps: 1 });
  });
});

/** The same, and its RAM. */
async function traitsOf(qemu: Qemu): Promise<unknown[]> {
  const ram = await Promise.all(qemu.ramPaths.map(surveyRam));
  return [...(await settingsOf(qemu)), ...ram];
}

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
