import { readdirSync } from "node:fs";
import { dirname } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Deadline } from "../../base/clock.ts";
import { MIB } from "../../base/units.ts";
import { migrateIn } from "../../engine/destination.ts";
import { LiveParameters } from "../../engine/live-parameters.ts";
import { type MigrateOutOptions, migrateOut, type SourcePhase } from "../../engine/source.ts";
import { parseGroupName } from "../../hosts/qemu/quota-group.ts";
import { QemuDestination, QemuSource } from "../../hosts/qemu.ts";
import { HoldingRelay } from "../fixtures/cli-relay.ts";
import {
  decideQuotaReadiness,
  limitIn,
  throttledPeriodsIn,
  whereIs,
} from "../fixtures/quota-cgroups.ts";
import type { Cli } from "../run-cli.ts";
import { GuestImage } from "./guest/image.ts";
import { addressOf, Journey, startReceive, startSend } from "./guest/journey.ts";
import type { GuestWork, Qemu } from "./guest/qemu.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

/** It never rests, so that a quota takes something from it. */
const WORK: GuestWork = { sizeMib: 16, rateMib: 400 };
const PROCESSORS = 2;

const LIMIT_MS = 60_000;

/** No pause is short enough, so the guest is soon throttled, and stays so until that is changed. */
const STUBBORN = {
  channels: 1,
  autoConverge: true,
  throttleInitialPercent: 50,
  throttleMaxPercent: 50,
  downtimeLimitMs: 1,
  maxRounds: 1000,
} as const;
const STUBBORN_FLAGS = [
  ...["--channels", "1", "--auto-converge", "--downtime-limit", "1ms", "--max-rounds", "1000"],
  ...["--throttle-initial", "50", "--throttle-max", "50"],
];
/** What half of a processor's time is to the kernel. */
const HALF = [5_000, 10_000];
/** Any pause is short enough, also on a busy machine. */
const AT_ONCE = { downtimeLimitMs: 600_000 };

const { missing, isSkipped, because } = decideReadiness("the throttle of a real QEMU's guest", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);
const quotas = decideQuotaReadiness("The throttle of a real QEMU's guest is");

test.skipIf(isSkipped)(`this machine can run a guest of QEMU to throttle${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0 || quotas.isSkipped)(
  `the throttle of a real guest${because}${quotas.because}`,
  () => {
    let image: GuestImage;
    let journey: Journey;

    beforeAll(async () => {
      image = await GuestImage.build();
      const args = ["-smp", `${PROCESSORS}`];
      journey = await Journey.begin({ image, work: WORK, args });
    });

    afterAll(async () => {
      await journey?.[Symbol.asyncDispose]();
      await image?.[Symbol.asyncDispose]();
    });

    beforeEach(async () => {
      await expectFree(journey.here);
    });

    test("is a quota on each of its processors' threads, and gone after success", async () => {
      const { here } = journey;
      const there = await journey.destination();
      await using pair = await Pair.open(here, there);
      const moving = pair.migrate();
      await untilThrottled(here, moving);
      pair.live.change(AT_ONCE);
      await moving;
      await pair.close();
      await expectFree(here);
      await journey.goOnAt(there);
      await journey.expectRunsOn({ beats: 2, sweeps: 1 });
    });

    test.for<SourcePhase>(["precopy", "rest", "devices", "ready"])(
      "is gone after a cancel in phase %s",
      async (cancelled) => {
        const { here } = journey;
        await using there = await journey.destination();
        await using pair = await Pair.open(here, there);
        const controller = new AbortController();
        const onPhase = (phase: SourcePhase): void => {
          if (phase === cancelled && phase !== "precopy") controller.abort();
        };
        const moving = pair.migrate({ signal: controller.signal, onPhase });
        await untilThrottled(here, moving);
        if (cancelled === "precopy") controller.abort();
        else pair.live.change(AT_ONCE);
        await expect(moving).rejects.toMatchObject({ code: "CANCELLED" });
        await expectFree(here);
        await journey.expectRunsOn({ beats: 2 });
      },
    );

    test("is gone after a failure at the destination", async () => {
      const { here } = journey;
      await using there = await journey.destination();
      await using pair = await Pair.open(here, there);
      const moving = pair.migrate();
      await untilThrottled(here, moving);
      there.kill();
      await there.ended;
      pair.live.change(AT_ONCE);
      await expect(moving).rejects.toMatchObject({ at: "destination" });
      await expectFree(here);
      await journey.expectRunsOn({ beats: 2 });
    });

    test.for<[what: string, befall: (commands: Commands) => void]>([
      ["the link was cut", ({ relay }) => relay.cut()],
      ["the engine at the destination was killed", ({ receive }) => receive.kill("SIGKILL")],
      ["somebody has cancelled", ({ send }) => send.kill("SIGINT")],
    ])("is gone after %s", async ([, befall]) => {
      const { here } = journey;
      await using there = await journey.destination();
      await using commands = await Commands.begin(here, there);
      befall(commands);
      expect((await commands.send.exit).status).toBe(1);
      await expectFree(here);
      await journey.expectRunsOn({ beats: 2 });
    });

    test.for(["send", "receive"] as const)(
      "stays where its engine was killed, until the next %s looks at any guest, and says so",
      async (command) => {
        const { here } = journey;
        await using there = await journey.destination();
        await using commands = await Commands.begin(here, there);
        const { send } = commands;
        send.kill("SIGKILL");
        expect((await send.exit).signal).toBe("SIGKILL");
        expect(await limitsOf(here)).toEqual([HALF, HALF]);

        await using fresh = await journey.destination();
        await using next =
          command === "send" ? startSend(here, "tcp:127.0.0.1:1") : startReceive(fresh);
        const note = `lifted the quota that a killed migration had left on ${PROCESSORS} threads`;
        expect(await next.waitFor("note")).toMatchObject({ text: note });
        await expectFree(here);
        next.kill("SIGINT");
        await next.exit;
        await journey.expectRunsOn({ beats: 2 });
        await journey.move({ sourceFlags: ["--downtime-limit", "10min"] });
        await journey.expectRunsOn({ beats: 2, sweeps: 1 });
      },
    );
  },
);

/** Both hosts in this process, so that limits can be changed while the guest moves. */
class Pair implements AsyncDisposable {
  readonly live = new LiveParameters();
  readonly #source: QemuSource;
  readonly #destination: QemuDestination;

  private constructor(source: QemuSource, destination: QemuDestination) {
    this.#source = source;
    this.#destination = destination;
  }

  static async open(from: Qemu, to: Qemu): Promise<Pair> {
    const source = await QemuSource.open(from.qmpPath, { throttle: true });
    try {
      expect(source.notThrottled).toBe(undefined);
      return new Pair(source, await QemuDestination.open(to.qmpPath));
    } catch (error) {
      await source.close();
      throw error;
    }
  }

  async migrate(out: MigrateOutOptions = {}): Promise<void> {
    const listening = Promise.withResolvers<string>();
    const arriving = migrateIn(this.#destination, "tcp:127.0.0.1:0", {
      onListening: listening.resolve,
    });
    const arrived = arriving.catch(() => {}); // The source says what happened.
    const address = await listening.promise;
    try {
      await migrateOut(this.#source, address, { ...STUBBORN, live: this.live, ...out });
    } finally {
      await arrived;
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.#source.close(), this.#destination.close()]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Both ends as commands, in processes of their own, which can be killed. */
class Commands implements AsyncDisposable {
  readonly receive: Cli;
  readonly relay: HoldingRelay;
  readonly send: Cli;

  private constructor({ receive, relay, send }: Pick<Commands, "receive" | "relay" | "send">) {
    this.receive = receive;
    this.relay = relay;
    this.send = send;
  }

  /** Returns when the guest is throttled. */
  static async begin(here: Qemu, there: Qemu): Promise<Commands> {
    await using undo = new AsyncDisposableStack();
    const receive = undo.use(startReceive(there));
    const target = await addressOf(receive);
    const holding = { target, hold: null, whenSenderGoes: "drop" } as const;
    const relay = undo.use(await HoldingRelay.start(holding));
    const send = undo.use(startSend(here, relay.address, STUBBORN_FLAGS));
    // Before, the engine only tries whether it could: then quotas come and go.
    await send.waitFor("progress", (event) => Number(event["throttlePercent"]) > 0);
    await untilThrottled(here, send.exit);
    undo.move();
    return new Commands({ receive, relay, send });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const each of [this.send, this.relay, this.receive]) await each[Symbol.asyncDispose]();
  }
}

/** Resolves when the kernel has stopped the guest for its quota; fails when the move ends before. */
async function untilThrottled(qemu: Qemu, moving: Promise<unknown>): Promise<void> {
  let hasEnded = false;
  const end = (): void => {
    hasEnded = true;
  };
  moving.then(end, end);
  const threadIds = await qemu.threadIds();
  const home = whereIs(qemu.processId, qemu.processId);
  const deadline = new Deadline(LIMIT_MS);
  while (!isThrottled(qemu, threadIds)) {
    if (hasEnded) await moving;
    if (hasEnded || deadline.passed) throw new Error("the guest was not throttled");
    await turn();
  }
  const folders = threadIds.map((id) => whereIs(qemu.processId, id));
  expect(new Set(folders).size).toBe(PROCESSORS);
  for (const folder of folders) expect(dirname(folder)).toBe(home);
  for (const id of otherThreads(qemu, threadIds)) expect(whereIs(qemu.processId, id)).toBe(home);
}

/** Each by itself has half of a processor, and one has used that up at least once. */
function isThrottled(qemu: Qemu, threadIds: readonly number[]): boolean {
  const folders = threadIds.map((id) => whereIs(qemu.processId, id));
  const isHalf = (folder: string) => `${limitIn(folder)}` === `${HALF}`;
  return folders.every(isHalf) && folders.some((folder) => throttledPeriodsIn(folder) > 0);
}

async function limitsOf(qemu: Qemu): Promise<(readonly [number, number])[]> {
  return (await qemu.threadIds()).map((id) => limitIn(whereIs(qemu.processId, id)));
}

/** All of its threads are where its main thread is, and no cgroup is left of any. */
async function expectFree(qemu: Qemu): Promise<void> {
  const threadIds = await qemu.threadIds();
  expect(threadIds).toHaveLength(PROCESSORS);
  const home = whereIs(qemu.processId, qemu.processId);
  for (const id of threadIds) expect(whereIs(qemu.processId, id)).toBe(home);
  const ours = readdirSync(home).map((name) => parseGroupName(name)?.threadId ?? 0);
  expect(ours.filter((id) => threadIds.includes(id))).toEqual([]);
}

/** They serve the guest, and the monitor that it is asked through. */
function otherThreads(qemu: Qemu, threadIds: readonly number[]): number[] {
  const all = readdirSync(`/proc/${qemu.processId}/task`).map(Number);
  const others = all.filter((id) => !threadIds.includes(id));
  expect(others).toContain(qemu.processId);
  return others;
}
