import { expect } from "vitest";
import type { FrameName } from "../../../channels/frame.ts";
import type { DestinationPhase } from "../../../engine/destination.ts";
import type { SourcePhase } from "../../../engine/source.ts";
import { HoldingRelay } from "../../fixtures/cli-relay.ts";
import type { Cli, CliExit } from "../../run-cli.ts";
import { addressOf, HOWEVER_LONG, type Journey, startReceive, startSend } from "./journey.ts";
import { type MigrationState, MonitorRelay } from "./monitor-relay.ts";
import type { Qemu, QemuRequest } from "./qemu.ts";

/** Where a migration stands. */
export interface Phases {
  readonly source: SourcePhase;
  readonly destination: DestinationPhase;
}

/** What does not arrive, so that the phases last until it is let through. */
type Held =
  | {
      readonly frame: FrameName;
      /** Such frames pass before the first of this kind. */
      readonly afterFrame?: FrameName;
      /** Such frames pass until the source's QEMU is that far. */
      readonly afterState?: MigrationState;
    }
  | Word;

/** A QEMU is that far, and its engine does not hear of it. */
interface Word {
  readonly state: MigrationState;
  readonly of: "source" | "destination";
}

/** A moment in which a migration is kept. */
export interface Stop {
  readonly phases: Phases;
  readonly held: Held;
  /** What the source's QEMU says of the guest then. */
  readonly guest: "running" | "finish-migrate" | "postmigrate";
}

/** The guest stands still, and QEMU waits before it saves its devices. */
export const REST: Stop = {
  phases: { source: "rest", destination: "receive" },
  held: { frame: "fenced", afterState: "pre-switchover" },
  guest: "finish-migrate",
};

/** The destination could run the guest, and the source does not know it yet. */
export const READY: Stop = {
  phases: { source: "ready", destination: "commit" },
  held: { frame: "ready" },
  guest: "postmigrate",
};

/** Those before COMMIT, where every failure ends with the guest running at the source. */
export const STOPS: readonly Stop[] = [
  {
    phases: { source: "connect", destination: "listen" },
    held: { frame: "hello" },
    guest: "running",
  },
  {
    phases: { source: "agree", destination: "agree" },
    held: { frame: "accept" },
    guest: "running",
  },
  {
    phases: { source: "precopy", destination: "receive" },
    held: { frame: "fenced", afterFrame: "pages" },
    guest: "running",
  },
  {
    phases: { source: "pause", destination: "receive" },
    held: { state: "pre-switchover", of: "source" },
    guest: "finish-migrate",
  },
  REST,
  {
    phases: { source: "devices", destination: "receive" },
    held: { state: "completed", of: "source" },
    guest: "postmigrate",
  },
  {
    phases: { source: "ready", destination: "devices" },
    held: { frame: "piece" },
    guest: "postmigrate",
  },
  {
    phases: { source: "ready", destination: "load" },
    held: { state: "completed", of: "destination" },
    guest: "postmigrate",
  },
  READY,
];

export function nameOf({ phases }: Stop): string {
  return `${phases.source} (at the destination ${phases.destination})`;
}

/** Each takes a moment to start, and one is enough for what is tested here. */
const FLAGS = ["--channels", "1"];

/** A migration that is kept in a phase, and everybody who takes part in it. */
export class Scene implements AsyncDisposable {
  readonly source: Qemu;
  readonly destination: Qemu;
  readonly receive: Cli;
  readonly relay: HoldingRelay;
  readonly send: Cli;
  readonly #monitor: MonitorRelay | null;
  readonly #resources: AsyncDisposableStack;
  readonly #taking: { isTaken: boolean };

  private constructor(cast: Cast, resources: AsyncDisposableStack) {
    this.#taking = cast.taking;
    this.source = cast.source;
    this.destination = cast.destination;
    this.receive = cast.receive;
    this.relay = cast.relay;
    this.send = cast.send;
    this.#monitor = cast.monitor;
    this.#resources = resources;
  }

  static async begin(
    journey: Journey,
    stop: Stop,
    different: Partial<QemuRequest> = {},
  ): Promise<Scene> {
    await using resources = new AsyncDisposableStack();
    const source = journey.here;
    const destination = await journey.destination(different);
    const taking = { isTaken: false };
    resources.defer(async () => {
      if (!taking.isTaken) await destination[Symbol.asyncDispose]();
    });
    const { held } = stop;
    const word = wordIn(held);
    const monitor =
      word && resources.use(await MonitorRelay.start({ source, destination }[word.of], word.state));
    const monitorOf = (qemu: Qemu, end: "source" | "destination") =>
      monitor !== null && word?.of === end ? monitor : qemu;
    const receive = resources.use(startReceive(monitorOf(destination, "destination"), FLAGS));
    const relay = resources.use(await relayTo(await addressOf(receive), held));
    const flags = [...FLAGS, ...HOWEVER_LONG];
    const send = resources.use(startSend(monitorOf(source, "source"), relay.address, flags));
    const cast = { source, destination, receive, relay, send, monitor, taking };
    await untilHeld(cast, stop);
    await expectAt(cast, stop);
    return new Scene(cast, resources.move());
  }

  /** Nothing is held back any more. */
  release(): void {
    this.relay.release();
    this.#monitor?.release();
  }

  /** The guest never ran at the destination, and will not. */
  async expectNothingArrived(): Promise<void> {
    this.relay.cut();
    this.#monitor?.release(); // A load that goes on is waited for.
    this.receive.kill("SIGINT"); // Where nobody had introduced himself, it waits for another.
    const arrived = await this.receive.exit;
    expect(arrived.status).not.toBe(0);
    await this.expectStill(this.destination);
    expect(this.destination.serial.text).toBe("");
  }

  /** It does not run its guest, if it is there at all. */
  async expectStill(qemu: Qemu): Promise<void> {
    if (!qemu.hasEnded) expect(await qemu.status()).not.toBe("running");
  }

  /** The destination's QEMU has the guest, and outlives this. */
  takeDestination(): Qemu {
    this.#taking.isTaken = true;
    return this.destination;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

interface Cast {
  readonly source: Qemu;
  readonly destination: Qemu;
  readonly receive: Cli;
  readonly relay: HoldingRelay;
  readonly send: Cli;
  readonly monitor: MonitorRelay | null;
  /** Whether the destination's QEMU is somebody else's to end. */
  readonly taking: { isTaken: boolean };
}

/** The one that a QEMU's engine does not hear, or not yet. */
function wordIn(held: Held): Word | null {
  if ("state" in held) return held;
  return held.afterState === undefined ? null : { state: held.afterState, of: "source" };
}

async function relayTo(target: string, held: Held): Promise<HoldingRelay> {
  const common = { target, whenSenderGoes: "drop" } as const;
  if ("state" in held) return await HoldingRelay.start({ ...common, hold: null });
  const { frame, afterFrame, afterState } = held;
  const after = afterState === undefined ? afterFrame : ("arm" as const);
  return await HoldingRelay.start({
    ...common,
    hold: frame,
    ...(after !== undefined && { after }),
  });
}

/** All that leads to the stop has happened, and both ends have said so. */
async function untilHeld(
  { send, receive, relay, monitor }: Pick<Cast, "send" | "receive" | "relay" | "monitor">,
  { phases, held }: Stop,
): Promise<void> {
  const ended = send.exit.then(({ stdout }) => {
    throw new Error(`The source has ended before it was held back:\n${stdout}`);
  });
  const happened = async (): Promise<void> => {
    await monitor?.holding;
    if ("frame" in held && held.afterState !== undefined) {
      relay.arm();
      monitor?.release();
    }
    if ("frame" in held) await relay.holding;
    await untilPhase(send, phases.source);
    await untilPhase(receive, phases.destination);
  };
  await Promise.race([happened(), ended]);
}

/** Both ends are in these phases, and the guest is as it is then. */
async function expectAt(
  { send, receive, source }: Pick<Cast, "send" | "receive" | "source">,
  { phases, guest }: Stop,
): Promise<void> {
  expect(lastPhase(send.said)).toBe(phases.source);
  expect(lastPhase(receive.said)).toBe(phases.destination);
  await source.waitForStatus(guest); // QEMU tells of its end a moment before it is there.
}

async function untilPhase(end: Cli, phase: SourcePhase | DestinationPhase): Promise<void> {
  await end.waitFor("phase", (event) => event["phase"] === phase);
}

/** The phase that an engine was in when it said the last of these. */
export function lastPhase(events: CliExit["events"]): unknown {
  return events.findLast(({ event }) => event === "phase")?.["phase"];
}

/** What the user of a QEMU does whose engine was killed before COMMIT. */
export async function takeBack(qemu: Qemu): Promise<void> {
  for (;;) {
    const status = await qemu.status();
    if (status === "running") return;
    if (status === "postmigrate") await qemu.monitor.execute("cont");
    else await qemu.monitor.execute("migrate_cancel");
  }
}
