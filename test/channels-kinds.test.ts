import { spawn } from "node:child_process";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { parseAddress } from "../channels/address.ts";
import { connector } from "../channels/connection.ts";
import { migrateIn } from "../engine/destination.ts";
import { migrateOut } from "../engine/source.ts";
import { Meeting } from "./fixtures/cli-sockets.ts";
import type { EndpointWord } from "./fixtures/fault-endpoint.ts";
import { outputOf, startConnected } from "./harness/connected-processes.ts";
import { FaultRig, type Verdict, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { outcomeOf, type PairOutcome } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const BRIDGE = fileURLToPath(new URL("./fixtures/cli-bridge.ts", import.meta.url));
const ENDPOINT = fileURLToPath(new URL("./fixtures/fault-endpoint.ts", import.meta.url));

beforeAll(async () => {
  await warmUp();
  // Node keeps what it needs to watch over children.
  await text(must(spawn("true", { stdio: ["ignore", "pipe", "inherit"] }).stdout, "it is a pipe"));
});

async function newFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "multifd-kinds-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  return folder;
}

/** An address whose command joins a channel to the unix socket at `path`. */
function bridgeTo(path: string, before = ""): string {
  return `exec:${before}'${process.execPath}' '${BRIDGE}' '${path}'`;
}

/** Migrates between two addresses that meet somehow. */
async function migrateBetween(
  rig: FaultRig,
  addresses: { source: string; destination: string },
): Promise<PairOutcome> {
  const listening = Promise.withResolvers<string>();
  const abort = new AbortController();
  const arriving = outcomeOf(
    migrateIn(rig.destination, addresses.destination, {
      onListening: listening.resolve,
      signal: abort.signal,
    }),
  );
  await listening.promise;
  const source = await outcomeOf(migrateOut(rig.source, addresses.source, { channels: 2 }));
  if (rig.destination.calls.length === 0) abort.abort(); // Nobody reached it.
  return { source, destination: await arriving };
}

const COMPLETED: { source: Verdict; destination: Verdict } = {
  source: "completed",
  destination: "completed",
};

test(`exec: a source reaches a unix socket through a command for each channel (SEED=${seed})`, async () => {
  const folder = await newFolder();
  const rig = new FaultRig(seed);
  const path = join(folder, "socket");
  const outcome = await migrateBetween(rig, {
    source: bridgeTo(path),
    destination: `unix:${path}`,
  });
  expect(verdictsOf(outcome)).toEqual(COMPLETED);
  rig.expectArrived();
  await rig.expectNoLeaks();
});

test(`exec: both ends start commands, which meet somewhere (SEED=${seed})`, async () => {
  const folder = await newFolder();
  const [one, other] = [join(folder, "one"), join(folder, "other")];
  const rig = new FaultRig(seed);
  {
    await using _meeting = await Meeting.at(one, other);
    const addresses = { source: bridgeTo(one), destination: bridgeTo(other) };
    expect(verdictsOf(await migrateBetween(rig, addresses))).toEqual(COMPLETED);
    rig.expectArrived();
  }
  await rig.expectNoLeaks();
});

test("exec: a command that has become another user's is let go without a word", async () => {
  const kill = vi.spyOn(process, "kill").mockImplementation(() => {
    throw Object.assign(new Error("kill EPERM"), { code: "EPERM" });
  });
  onTestFinished(() => kill.mockRestore());
  const { connect } = connector(parseAddress("exec:exec cat"));
  const { reader, writer, close } = await connect(0, 1000);
  close();
  expect(kill).toHaveBeenCalledOnce();
  expect([reader.destroyed, writer.destroyed]).toEqual([true, true]);
});

for (const [how, command] of [
  ["exits at once", "exec:exit 3"],
  ["does not exist", "exec:exec /there/is/no/such/command"],
  ["closes its pipes and stays", "exec:exec sleep 60 <&- >&-"],
  ["says something else", "exec:echo hello, dear world, this is another protocol; exec sleep 60"],
] as const) {
  test(`exec: a command that ${how} fails both ends in a typed way (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const { failure } = await outcomeOf(migrateOut(rig.source, command, { channels: 2 }));
    expect(failure?.at).toBe("source");
    expect(failure?.code).toMatch(/^(CHANNEL_LOST|FRAME_CORRUPT)$/);
    expect(rig.source.calls).toEqual([]);
    rig.expectUnharmed();

    const arrived = await outcomeOf(migrateIn(rig.destination, command));
    expect(arrived.failure?.at).toBe("destination");
    expect(arrived.failure?.code).toMatch(/^(CHANNEL_LOST|FRAME_CORRUPT)$/);
    rig.expectDiscarded();
    await rig.succeeds();
  });
}

test(`exec: a command that stops in the midst of it is CHANNEL_LOST (SEED=${seed})`, async () => {
  const folder = await newFolder();
  const rig = new FaultRig(seed);
  const path = join(folder, "socket");
  // Enough for what the main channel says, and too little for a channel of pages.
  const source = bridgeTo(path, "dd bs=65536 count=40 status=none | ");
  const outcome = await migrateBetween(rig, { source, destination: `unix:${path}` });
  expect(outcome.source.failure?.code).toBe("CHANNEL_LOST");
  expect(outcome.destination.failure?.code).toBe("CHANNEL_LOST");
  rig.expectUnharmed();
  rig.expectDiscarded();
  await rig.succeeds();
});

/** What two ends say, in processes of their own with connected descriptors 3, 4 … at both. */
async function wordsBetween(
  count: number,
  address: { out: string; in: string },
): Promise<{ source: EndpointWord; destination: EndpointWord }> {
  const ends = startConnected(count, {
    source: [ENDPOINT, "out", address.out, `${seed}`],
    destination: [ENDPOINT, "in", address.in, `${seed}`],
  });
  const outputs = [outputOf(ends.source), outputOf(ends.destination)];
  const [source, destination] = (await Promise.all(outputs)).map((output) => `${output}`);
  return { source: JSON.parse(source ?? ""), destination: JSON.parse(destination ?? "") };
}

test(`fd: inherited descriptors carry a guest, one for each channel (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  const { source, destination } = await wordsBetween(3, { out: "fd:3,4,5", in: "fd:3,4,5" });
  expect(source).toEqual({ code: "completed", digest: destination.digest, running: false });
  expect(destination).toMatchObject({ code: "completed", running: true });
  await leaks.settled();
});

test(`fd: it does not matter in which order descriptors are named (SEED=${seed})`, async () => {
  const { source, destination } = await wordsBetween(4, { out: "fd:6,3,5", in: "fd:6,5,3,4" });
  expect(source).toEqual({ code: "completed", digest: destination.digest, running: false });
  expect(destination).toMatchObject({ code: "completed", running: true });
});

test("fd: too few descriptors for the channels are refused before anything is touched", async () => {
  const { source, destination } = await wordsBetween(2, { out: "fd:3,4", in: "fd:3,4" });
  expect(source).toMatchObject({ code: "CONFIGURATION_INVALID", running: true });
  expect(destination).toMatchObject({ code: "CHANNEL_LOST", running: false });
});

test(`fd: descriptors that are no connections are ADDRESS_UNUSABLE (SEED=${seed})`, async () => {
  await using file = await open("/dev/null");
  for (const address of [`fd:${file.fd},1000,1001`, "fd:1000,1001,1002"]) {
    const rig = new FaultRig(seed);
    const { failure } = await outcomeOf(migrateOut(rig.source, address, { channels: 2 }));
    expect(failure).toMatchObject({ code: "ADDRESS_UNUSABLE", at: "source" });
    rig.expectUnharmed();
    rig.destination = new RecordingDestination();
    const arrived = await outcomeOf(migrateIn(rig.destination, address));
    expect(arrived.failure).toMatchObject({ code: "ADDRESS_UNUSABLE", at: "destination" });
    await rig.succeeds();
  }
});
