import { expect } from "vitest";
import type { FrameName } from "../../../channels/frame.ts";
import type { SourcePhase } from "../../../engine/source.ts";
import { HoldingRelay } from "../../fixtures/cli-relay.ts";
import type { Cli } from "../../run-cli.ts";
import { addressOf, type Journey, startReceive, startSend } from "./journey.ts";
import type { Qemu, QemuRequest } from "./qemu.ts";

/** How a migration is kept in a phase: at a frame that is held back. */
export interface Stop {
  readonly phase: SourcePhase;
  readonly hold: FrameName;
  /** Such frames pass before this phase begins. */
  readonly from?: SourcePhase;
  /** The phase is over before the frame comes; where it is met in it, nobody knows. */
  readonly isFleeting?: true;
}

/** Those before COMMIT, where every failure ends with the guest running at the source. */
export const STOPS: readonly Stop[] = [
  { phase: "connect", hold: "hello" },
  { phase: "agree", hold: "accept" },
  { phase: "precopy", hold: "fenced", from: "precopy" },
  { phase: "pause", hold: "ready", isFleeting: true },
  { phase: "rest", hold: "fenced", from: "pause" },
  { phase: "devices", hold: "ready", isFleeting: true },
  { phase: "ready", hold: "piece" },
];

/** Each takes a moment to start, and one is enough for what is tested here. */
const FLAGS = ["--channels", "1"];

/** A migration that is kept in a phase, and everybody who takes part in it. */
export class Scene implements AsyncDisposable {
  readonly source: Qemu;
  readonly destination: Qemu;
  readonly receive: Cli;
  readonly relay: HoldingRelay;
  readonly send: Cli;
  readonly #resources: AsyncDisposableStack;
  readonly #taking: { isTaken: boolean };

  private constructor(
    { source, destination, receive, relay, send, taking }: Cast,
    resources: AsyncDisposableStack,
  ) {
    this.#taking = taking;
    this.source = source;
    this.destination = destination;
    this.receive = receive;
    this.relay = relay;
    this.send = send;
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
    const receive = resources.use(startReceive(destination, FLAGS));
    const relay = resources.use(await relayTo(await addressOf(receive), stop));
    const send = resources.use(startSend(source, relay.address, FLAGS));
    await untilHeld({ send, relay }, stop);
    return new Scene({ source, destination, receive, relay, send, taking }, resources.move());
  }

  /** The guest never ran at the destination, and will not. */
  async expectNothingArrived(): Promise<void> {
    this.relay.cut();
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
  /** Whether the destination's QEMU is somebody else's to end. */
  readonly taking: { isTaken: boolean };
}

async function relayTo(target: string, { hold, from }: Stop): Promise<HoldingRelay> {
  const after = from === undefined ? {} : ({ after: "arm" } as const);
  return await HoldingRelay.start({ target, hold, whenSenderGoes: "drop", ...after });
}

async function untilHeld(
  { send, relay }: Pick<Cast, "send" | "relay">,
  { phase, from, isFleeting }: Stop,
): Promise<void> {
  const reached = (name: string) => send.waitFor("phase", (event) => event["phase"] === name);
  if (from !== undefined) {
    await reached(from);
    relay.arm();
  }
  await reached(phase);
  if (isFleeting !== true) await relay.holding;
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
