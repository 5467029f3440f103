import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { describe, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import type { FrameName } from "../channels/frame.ts";
import type { DestinationPhase } from "../engine/destination.ts";
import type { PostcopyPhase, SourcePhase } from "../engine/source.ts";
import { CliFolder, isSameFile } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { HoldingRelay, type WhenSenderGoes } from "./fixtures/cli-relay.ts";
import { FakeQemu } from "./harness/fake-qemu.ts";
import { Prng } from "./prng.ts";
import { type Cli, type CliExit, startCli } from "./run-cli.ts";

/** Both do the same, so what follows a failure is tried after one of them. */
const SIGNALS = { SIGINT: { retries: true }, SIGTERM: { retries: false } } as const;
const IMAGE_BYTES = 4 * MIB;
const SEED = 20;

/** With it, the image takes seconds: long enough to be met in the middle of pre-copy. */
const SLOWLY = ["--max-bandwidth", "512KiB/s"];

/** No end gives the other up by itself while it is held. */
const PATIENTLY = ["--channels", "2", "--json"];
const DESTINATION_PATIENTLY = ["--json"];

/** How a migration is kept in a phase, and how it ends when it is interrupted there. */
interface Stop {
  readonly hold?: FrameName;
  readonly after?: FrameName;
  readonly whenSenderGoes?: WhenSenderGoes;
  readonly flags?: readonly string[];
  /** The phase passes at once; where the signal meets the migration, nobody knows. */
  readonly isFleeting?: true;
  /** The interrupt comes too late and changes nothing. */
  readonly isTooLate?: true;
  /** What the other end fails with; null where it knows of nothing and goes on waiting. */
  readonly other?: string | null;
}

/** What a guest in files does in these takes no time. */
type OfQemu = "pause" | "devices";

const SOURCE_STOPS: Readonly<Record<Exclude<SourcePhase, PostcopyPhase | OfQemu>, Stop>> = {
  connect: { hold: "hello", whenSenderGoes: "drop", other: null },
  agree: { hold: "accept" },
  precopy: { flags: SLOWLY },
  // With all the time there is, a stopped guest has one round; fences after it are of the rest.
  rest: { hold: "fenced", after: "round", flags: ["--downtime-limit", "60s"] },
  ready: { hold: "ready" },
  commit: { hold: "running", isTooLate: true },
};

const DESTINATION_STOPS: Readonly<Record<Exclude<DestinationPhase, PostcopyPhase | OfQemu>, Stop>> =
  {
    listen: { other: null },
    agree: { hold: "agree" },
    receive: { flags: SLOWLY },
    load: { hold: "end" },
    // READY may get through as the relay closes, and COMMIT then cross the signal.
    commit: { hold: "ready", isFleeting: true },
    resume: { hold: "running", isTooLate: true },
  };

/** The state of QEMU's own migration in which it is kept for the phase. */
const QEMU_STOPS = { pause: "active", devices: "device" } as const;

for (const [signal, { retries }] of Object.entries(SIGNALS)) {
  describe(`${signal} to the source`, () => {
    for (const [phase, stop] of Object.entries(SOURCE_STOPS)) {
      test(`${phase}: ${outcomeText(stop, "the source")}`, async () => {
        using folder = new CliFolder();
        const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
        await using destination = receive(folder);
        const address = await addressOf(destination);
        await using relay = await relayTo(address, stop);
        await using source = send(relay?.address ?? address, image, stop.flags);
        await source.waitFor("phase", (event) => event["phase"] === phase);
        await relay?.holding;
        source.kill(signal as keyof typeof SIGNALS);
        if (stop.isTooLate) relay?.release();

        const left = await source.exit;
        if (stop.other === null) {
          expectCancelled(left, phase);
          return await expectArrival(destination, address, folder, image);
        }
        const arrived = await destination.exit;
        if (left.status === 0) return await expectCompleted(left, arrived, folder, image, stop);
        expectCancelled(left, stop.isFleeting ? undefined : phase);
        expect(failureOf(arrived)).toMatchObject({ code: "CANCELLED", at: "source" });
        expect(arrived.status).toBe(1);
        expect(folder.names()).toEqual(["source.ram"]);
        if (retries) await expectRetry(folder, image);
      });
    }
  });

  describe(`${signal} to the source of QEMU's guest`, () => {
    for (const [phase, state] of Object.entries(QEMU_STOPS)) {
      test(`${phase}: the source is cancelled, its guest runs on, and the other end says so`, async () => {
        await using from = await startQemu();
        from.staysIn = state;
        await using to = await FakeQemu.start({ runState: "inmigrate" });
        await using destination = receiveInto(to);
        await using source = sendFrom(from, await addressOf(destination));
        await source.waitFor("phase", (event) => event["phase"] === phase);
        await from.staying;
        expect(from.runState).toBe("finish-migrate");
        source.kill(signal as keyof typeof SIGNALS);

        const [left, arrived] = await Promise.all([source.exit, destination.exit]);
        expectCancelled(left, phase);
        expect(failureOf(arrived)).toMatchObject({ code: "CANCELLED", at: "source" });
        expect(arrived.status).toBe(1);
        expect([from.runState, to.loaded]).toEqual(["running", null]);
        // It was told so, and did not have to find its socket closed.
        expect(from.migration).toBe("cancelled");
        if (retries) await expectQemuRetry(from);
      });
    }
  });

  for (const command of ["send", "receive"]) {
    test(`${signal} to \`${command}\` cancels it while a monitor says nothing`, async () => {
      using folder = new CliFolder();
      await using stack = new AsyncDisposableStack();
      const monitor = createServer().listen({ path: folder.at("qmp") });
      stack.defer(() => void monitor.close());
      await using cli = startCli([
        command,
        "tcp:127.0.0.1:0",
        "--qemu",
        folder.at("qmp"),
        "--json",
      ]);
      const [silent] = (await once(monitor, "connection")) as [Socket];
      stack.defer(() => void silent.destroy());
      cli.kill(signal as keyof typeof SIGNALS);
      expectCancelled(await cli.exit, "start");
    });
  }

  describe(`${signal} to the destination of QEMU's guest`, () => {
    test("devices: the destination is cancelled, and the source's guest runs on", async () => {
      await using from = await startQemu();
      await using to = await FakeQemu.start({ runState: "inmigrate" });
      await using destination = receiveInto(to);
      const held = { hold: "section", whenSenderGoes: "deliver" } as const;
      await using relay = must(await relayTo(await addressOf(destination), held), "it holds");
      await using source = sendFrom(from, relay.address);
      await destination.waitFor("phase", (event) => event["phase"] === "devices");
      await relay.holding;
      destination.kill(signal as keyof typeof SIGNALS);

      const [left, arrived] = await Promise.all([source.exit, destination.exit]);
      expectCancelled(arrived, "devices");
      expect(failureOf(left)).toMatchObject({ code: "CANCELLED", at: "destination" });
      expect(left.status).toBe(1);
      expect([from.runState, to.loaded]).toEqual(["running", null]);
      if (retries) await expectQemuRetry(from);
    });
  });

  describe(`${signal} to the destination`, () => {
    for (const [phase, stop] of Object.entries(DESTINATION_STOPS)) {
      test(`${phase}: ${outcomeText(stop, "the destination")}`, async () => {
        using folder = new CliFolder();
        const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
        await using destination = receive(folder);
        const address = await addressOf(destination);
        if (stop.other === null) {
          destination.kill(signal as keyof typeof SIGNALS);
          expectCancelled(await destination.exit, phase);
          expect(folder.names()).toEqual(["source.ram"]);
          if (retries) await expectRetry(folder, image);
          return;
        }
        await using relay = await relayTo(address, stop);
        await using source = send(relay?.address ?? address, image, stop.flags);
        await destination.waitFor("phase", (event) => event["phase"] === phase);
        await relay?.holding;
        destination.kill(signal as keyof typeof SIGNALS);
        if (stop.isTooLate) relay?.release();

        const [left, arrived] = await Promise.all([source.exit, destination.exit]);
        if (left.status === 0) return await expectCompleted(left, arrived, folder, image, stop);
        expectCancelled(arrived, stop.isFleeting ? undefined : phase);
        expect(left.status).toBe(1);
        expect(folder.names()).toEqual(["source.ram"]);
        const failure = failureOf(left);
        // Where the signal crossed COMMIT, the source must not guess.
        if (stop.isFleeting && failure.code === "HANDOVER_UNKNOWN") return;
        expect(failure).toMatchObject({ code: "CANCELLED", at: "destination" });
        if (retries) await expectRetry(folder, image);
      });
    }
  });
}

test("a destination that is cancelled while COMMIT is on its way leaves the source unsure", async () => {
  using folder = new CliFolder();
  const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
  await using destination = receive(folder);
  const address = await addressOf(destination);
  await using relay = must(await relayTo(address, { hold: "commit" }), "it holds");
  await using source = send(relay.address, image);
  await relay.holding;
  await destination.waitFor("phase", (event) => event["phase"] === "commit");
  destination.kill("SIGTERM");

  const [left, arrived] = await Promise.all([source.exit, destination.exit]);
  expectCancelled(arrived, "commit");
  expect(failureOf(left)).toMatchObject({
    code: "HANDOVER_UNKNOWN",
    remedy: "settle",
    at: "source",
  });
  expect(left.status).toBe(1);
  expect(folder.names()).toEqual(["source.ram"]);
});

for (const side of ["source", "destination"] as const) {
  test(`a file that was there before stays when the ${side} is interrupted`, async () => {
    using folder = new CliFolder();
    const image = folder.image("source.ram", { bytes: IMAGE_BYTES, seed: SEED });
    folder.image("arrived.ram", { bytes: IMAGE_BYTES, seed: SEED + 1 });
    await using destination = receive(folder);
    await using source = send(await addressOf(destination), image, SLOWLY);
    await destination.waitFor("phase", (event) => event["phase"] === "receive");
    (side === "source" ? source : destination).kill("SIGINT");
    for (const exit of await Promise.all([source.exit, destination.exit])) {
      expect(failureOf(exit)).toMatchObject({ code: "CANCELLED", at: side });
      expect(exit.status).toBe(1);
    }
    expect(folder.names()).toEqual(["arrived.ram", "source.ram"]);
    await expectRetry(folder, image);
  });
}

/** A QEMU whose guest has something in its memory. */
async function startQemu(): Promise<FakeQemu> {
  const fake = await FakeQemu.start();
  const memory = Buffer.alloc(MIB);
  new Prng(SEED).bytes(memory);
  writeFileSync(fake.ramPath("ram"), memory);
  return fake;
}

function receiveInto(to: FakeQemu): Cli {
  return startCli(["receive", "tcp:127.0.0.1:0", "--qemu", to.path, ...DESTINATION_PATIENTLY]);
}

function sendFrom(from: FakeQemu, address: string): Cli {
  return startCli(["send", address, "--qemu", from.path, ...PATIENTLY]);
}

/** The same guest goes to a new QEMU. */
async function expectQemuRetry(from: FakeQemu): Promise<void> {
  from.staysIn = null;
  await using to = await FakeQemu.start({ runState: "inmigrate" });
  await using destination = receiveInto(to);
  await using source = sendFrom(from, await addressOf(destination));
  const [left, arrived] = await Promise.all([source.exit, destination.exit]);
  expect([left.status, arrived.status]).toEqual([0, 0]);
  expect([from.runState, to.runState]).toEqual(["postmigrate", "running"]);
  expect(await isSameFile(from.ramPath("ram"), to.ramPath("ram"))).toBe(true);
}

function outcomeText(stop: Stop, who: string): string {
  if (stop.isTooLate) return "too late, the migration completes";
  if (stop.other === null) return `${who} is cancelled, nobody else is concerned`;
  if (stop.isFleeting) return "both ends are cancelled, or both complete";
  return `${who} is cancelled, and the other end says so`;
}

function receive(folder: CliFolder): Cli {
  const memory = `ram=file:${folder.at("arrived.ram")}`;
  return startCli(["receive", "tcp:127.0.0.1:0", "--memory", memory, ...DESTINATION_PATIENTLY]);
}

function send(address: string, image: string, flags: readonly string[] = []): Cli {
  return startCli(["send", address, "--memory", `ram=file:${image}`, ...PATIENTLY, ...flags]);
}

async function addressOf(destination: Cli): Promise<string> {
  return String((await destination.waitFor("listening"))["address"]);
}

async function relayTo(target: string, stop: Stop): Promise<HoldingRelay | undefined> {
  const { hold, whenSenderGoes = "deliver", after } = stop;
  if (hold === undefined) return undefined;
  const only = after === undefined ? {} : { after };
  return await HoldingRelay.start({ target, hold, whenSenderGoes, ...only });
}

function expectCancelled(exit: CliExit, phase: string | undefined): void {
  const failure = failureOf(exit);
  expect(failure.code).toBe("CANCELLED");
  if (phase !== undefined) expect(failure.facts).toEqual({ phase });
  expect(exit.status).toBe(1);
  expect(exit.signal).toBe(null);
}

async function expectCompleted(
  left: CliExit,
  arrived: CliExit,
  folder: CliFolder,
  image: string,
  stop: Stop,
): Promise<void> {
  expect(stop.isTooLate === true || stop.isFleeting === true).toBe(true);
  for (const { status, events } of [left, arrived]) {
    expect(status).toBe(0);
    expect(events.at(-1)?.event).toBe("completed");
  }
  expect(await isSameFile(image, folder.at("arrived.ram"))).toBe(true);
}

/** The same source again, to a new destination. */
async function expectRetry(folder: CliFolder, image: string): Promise<void> {
  await using destination = receive(folder);
  await expectArrival(destination, await addressOf(destination), folder, image);
}

async function expectArrival(
  destination: Cli,
  address: string,
  folder: CliFolder,
  image: string,
): Promise<void> {
  await using source = send(address, image);
  const [left, arrived] = await Promise.all([source.exit, destination.exit]);
  expect([left.status, arrived.status]).toEqual([0, 0]);
  expect(await isSameFile(image, folder.at("arrived.ram"))).toBe(true);
}
