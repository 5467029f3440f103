import { existsSync, writeFileSync } from "node:fs";
import { expect, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { MigrationError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { VERDICTS, type Verdict, verdictOf } from "../cli/handover.ts";
import type { DestinationHost } from "../engine/host.ts";
import {
  type HandoverNote,
  HandoverRecord,
  recordedDestination,
  recordedOut,
} from "../hosts/handover-record.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { HoldingRelay } from "./fixtures/cli-relay.ts";
import { seedFromEnvironment } from "./prng.ts";
import { type Cli, type CliExit, runCli, startCli } from "./run-cli.ts";
import { SimulatedRecord } from "./sim/record.ts";

/** In a name that a file system without hard links (vfat, say) would have to make. */
const LINKLESS = "linkless";

vi.mock("node:fs", async (original) => {
  const fs = await original<typeof import("node:fs")>();
  const linkSync: typeof fs.linkSync = (from, to) => {
    if (!String(to).includes(LINKLESS)) return fs.linkSync(from, to);
    throw Object.assign(new Error("EPERM: operation not permitted, link"), { code: "EPERM" });
  };
  return { ...fs, linkSync };
});

const seed = seedFromEnvironment();

const OWNERS = ["source", "destination", "unknown"] as const;

function note(side: "source" | "destination", owner: HandoverNote["owner"], runs = false) {
  return { side, owner, runs, migration: "same" } as const;
}

test("whatever two records say, no copy may run at one end while the other may run it", () => {
  for (const source of OWNERS) {
    for (const destination of OWNERS) {
      for (const runs of destination === "destination" ? [false, true] : [false]) {
        const notes = {
          source: note("source", source),
          destination: note("destination", destination, runs),
        };
        const { owner } = VERDICTS[verdictOf(notes)];
        if (owner === "source") expect(destination).not.toBe("destination");
        if (owner === "destination") expect([source, destination]).toContain("destination");
        if (destination === "destination") expect(owner).not.toBe("source");
      }
    }
  }
});

test("records of two migrations are never taken for one, whatever they say", () => {
  for (const [here, there] of [
    ["one", "other"],
    [null, "other"],
    ["one", null],
  ]) {
    for (const source of OWNERS) {
      for (const destination of OWNERS) {
        const notes = {
          source: { ...note("source", source), migration: here ?? null },
          destination: { ...note("destination", destination), migration: there ?? null },
        };
        const verdict = verdictOf(notes);
        const hasNotMet = here === null || there === null;
        // A source that still has the guest may not have met that destination.
        const isHarmless = source === "source" && hasNotMet && destination !== "destination";
        if (isHarmless) expect(VERDICTS[verdict].owner).toBe("source");
        else expect(verdict).toBe("contradiction");
      }
    }
  }
});

test("a record knows its migration from when both ends have met, also if it was decided before", () => {
  using folder = new CliFolder();
  const source = new HandoverRecord(folder.at("source"));
  source.begin("source");
  expect(source.read().migration).toBe(null);
  source.identify("one");
  source.write({ side: "source", owner: "source", runs: false });
  expect(source.read()).toEqual({ ...note("source", "source"), migration: "one" });
  source.begin("source");
  expect(source.read().migration).toBe(null);
  const destination = new HandoverRecord(folder.at("destination"));
  destination.begin("destination");
  destination.decide("source");
  destination.identify("one");
  expect(destination.decide("destination")).toEqual({
    ...note("destination", "source"),
    migration: "one",
  });
});

test("nothing is settled by records of two migrations, and nothing is run", async () => {
  using folder = new CliFolder();
  const source = new HandoverRecord(folder.at("source.record"));
  source.begin("source");
  source.identify("one");
  source.write({ side: "source", owner: "unknown", runs: false });
  // One that waits for its source, and one that another source has come to.
  for (const migration of [null, "other"]) {
    const destination = new HandoverRecord(folder.at(`${migration}.record`));
    destination.begin("destination");
    if (migration !== null) destination.identify(migration);
    const before = [source.read(), destination.read()];
    const paths = [source.path, destination.path];
    expectTold(await runCli(["handover", ...paths, "--json"]), "contradiction");
    const told = await runCli(
      ["handover", ...paths, "--settle", "--resume-command", resumeIn(folder)].concat("--json"),
    );
    expect(told.status).toBe(2);
    expect(failureOf(told).code).toBe("CONFIGURATION_INVALID");
    expect([source.read(), destination.read()]).toEqual(before);
    expect(existsSync(folder.at("runs"))).toBe(false);
  }
});

test("a migration that finds another one in its record says nothing in it, and hands nothing over", async () => {
  using folder = new CliFolder();
  const begun = (): HandoverRecord => {
    const record = new HandoverRecord(folder.at("record"));
    record.begin("source");
    return record;
  };
  const failing = async (): Promise<never> => {
    throw new MigrationError("CANCELLED", { phase: "precopy" });
  };
  const taken = expect.objectContaining({ code: "CONFIGURATION_INVALID" });
  const unknown = { side: "source", owner: "unknown", runs: false } as const;

  // The second begins before the first has met its destination, and fails after that.
  const [first, second] = [begun(), begun()];
  first.identify("one");
  first.write(unknown);
  await expect(recordedOut(second, failing)).rejects.toMatchObject({ code: "CANCELLED" });
  expect(() => second.identify("two")).toThrow(taken);
  expect(first.read()).toEqual({ ...unknown, migration: "one" });
  // Somebody who settles it has begun none.
  new HandoverRecord(first.path).write({ ...unknown, owner: "source" });

  // The second begins when the first has met its destination, which then must not get the guest.
  const third = begun();
  third.identify("three");
  begun();
  expect(() => third.write(unknown)).toThrow(taken);
  expect(third.read()).toEqual({ ...unknown, owner: "source", migration: null });
});

test("a guest that was taken back is not run when another migration has begun in the record since", async () => {
  using folder = new CliFolder();
  const first = new HandoverRecord(folder.at("record"));
  first.begin("destination");
  first.identify("one");
  // COMMIT is on its way while `multifd handover` takes the guest back to the source.
  expect(new HandoverRecord(first.path).decide("source").owner).toBe("source");
  const second = new HandoverRecord(first.path);
  second.begin("destination");
  const taken = expect.objectContaining({ code: "CONFIGURATION_INVALID" });
  for (const migration of [null, "two"]) {
    if (migration !== null) second.identify(migration);
    for (const owner of ["destination", "source"] as const) {
      expect(() => first.decide(owner)).toThrow(taken);
    }
    expect(second.read()).toEqual({ ...note("destination", "unknown"), migration });
  }
  const host = recordedDestination(new FailingHost(), first);
  await expect(host.resume()).rejects.toEqual(taken);
  expect(second.decide("destination").owner).toBe("destination");
});

test("a destination that cannot begin leaves no record, and can be tried again", async () => {
  using folder = new CliFolder();
  const told = await runCli(
    ["receive", "tcp:127.0.0.1:0", "--qemu", folder.at("qmp")].concat([
      "--record",
      folder.at("record"),
      "--json",
    ]),
  );
  expect(failureOf(told).code).toBe("HYPERVISOR_UNREACHABLE");
  expect(folder.names()).toEqual([]);
});

test("what cannot be settled as it is asked is refused before anything is decided or run", async () => {
  using folder = new CliFolder();
  const source = new HandoverRecord(folder.at("source"));
  const destination = new HandoverRecord(folder.at("destination"));
  source.begin("source");
  destination.begin("destination");
  for (const record of [source, destination]) record.identify("one");
  source.write({ side: "source", owner: "unknown", runs: false });
  const resume = ["--settle", "--json", "--resume-command", resumeIn(folder)];
  const refused = async (args: readonly string[]): Promise<void> => {
    const told = await runCli(["handover", ...args]);
    expect([told.status, failureOf(told).code]).toEqual([2, "CONFIGURATION_INVALID"]);
    expect(existsSync(folder.at("runs"))).toBe(false);
    expect(destination.read().owner).toBe("unknown");
  };
  await refused([source.path, destination.path, ...resume, "--owner", "destination"]);
  await refused([destination.path, ...resume]);
  // A resume that failed after it was settled, say: to do nothing would look like success.
  source.write({ side: "source", owner: "source", runs: false });
  await refused([source.path, ...resume]);
});

test("what the destination decided first holds, whoever comes later", () => {
  using folder = new CliFolder();
  for (const [first, second] of [
    ["source", "destination"],
    ["destination", "source"],
  ] as const) {
    const record = new HandoverRecord(folder.at(first));
    record.begin("destination");
    expect(record.read().owner).toBe("unknown");
    expect(record.decide(first).owner).toBe(first);
    expect(record.decide(second).owner).toBe(first);
  }
  expect(folder.names().filter((name) => name.endsWith(".draft"))).toEqual([]);
});

test("where no decision can be linked to its name, a destination keeps no record", () => {
  using folder = new CliFolder();
  const record = new HandoverRecord(folder.at(LINKLESS));
  expect(() => record.begin("destination")).toThrow("hard links");
  expect(folder.names()).toEqual([]);
  record.begin("source"); // It decides nothing.
  expect(folder.names()).toEqual([LINKLESS]);
});

test("a record of a guest that may be elsewhere is not begun again", () => {
  using folder = new CliFolder();
  const record = new HandoverRecord(folder.at("record"));
  record.begin("source");
  record.begin("source");
  record.write(note("source", "unknown"));
  expect(() => record.begin("source")).toThrow("multifd handover");
});

/** A host with a private state, as QEMU's is. */
class FailingHost implements DestinationHost {
  readonly #since = 7;

  get runningSinceMs(): number {
    return this.#since;
  }

  async prepare(): Promise<never[]> {
    return [];
  }

  async loadDevices(): Promise<void> {}

  async resume(): Promise<void> {
    throw new Error(`no processor after ${this.#since} ms`);
  }

  async discard(): Promise<void> {}
}

test("a guest that the destination could not run is its own all the same", async () => {
  using folder = new CliFolder();
  const record = new HandoverRecord(folder.at("record"));
  record.begin("destination");
  const host: DestinationHost = recordedDestination(new FailingHost(), record);
  expect(host.runningSinceMs).toBe(7);
  expect(await host.prepare([], "", { mayFault: false })).toEqual([]);
  await expect(host.resume()).rejects.toThrow("no processor after 7 ms");
  expect(verdictOf({ destination: record.read() })).toBe("taken over");
  expect(record.decide("source").owner).toBe("destination");
});

test("the simulator's records say what those in files say", () => {
  using folder = new CliFolder();
  type Deed = (record: Pick<HandoverRecord, keyof SimulatedRecord>) => unknown;
  const identify: Deed = (record) => record.identify("one");
  const take: Deed = (record) => record.decide("destination");
  const takeBack: Deed = (record) => record.decide("source");
  const run: Deed = (record) => record.runs();
  const writeAll = OWNERS.map((owner): Deed => {
    return (record) => record.write({ side: "source", owner, runs: false });
  });
  const stories = [
    ["source", [identify, ...writeAll]],
    ["destination", [identify, take, run, takeBack]],
    ["destination", [take, takeBack, identify]],
    ["destination", [takeBack, identify, take]],
  ] as const;
  for (const [index, [side, deeds]] of stories.entries()) {
    const file = new HandoverRecord(folder.at(`${index}`));
    file.begin(side);
    const simulated = new SimulatedRecord(side);
    expect(simulated.read()).toEqual(file.read());
    for (const deed of deeds) {
      for (const record of [file, simulated]) deed(record);
      expect(simulated.read()).toEqual(file.read());
    }
  }
});

test("a file that is no record, or is not there, is wrong usage", async () => {
  using folder = new CliFolder();
  writeFileSync(folder.at("other"), '{"side":"source"}\n');
  for (const name of ["other", "missing"]) {
    const told = await runCli(["handover", folder.at(name), "--json"]);
    expect(told.status).toBe(2);
    expect(failureOf(told).code).toBe("CONFIGURATION_INVALID");
  }
});

/** Two processes that move a guest and keep records, held at a frame on its way. */
class Pair implements AsyncDisposable {
  readonly folder: CliFolder;
  readonly destination: Cli;
  readonly source: Cli;
  readonly relay: HoldingRelay;

  private constructor(folder: CliFolder, destination: Cli, source: Cli, relay: HoldingRelay) {
    this.folder = folder;
    this.destination = destination;
    this.source = source;
    this.relay = relay;
  }

  static async heldAt(folder: CliFolder, hold: "commit" | "running"): Promise<Pair> {
    const image = folder.image("source.ram", { bytes: MIB, seed });
    const destination = startCli(
      ["receive", "tcp:127.0.0.1:0", "--memory", `ram=file:${folder.at("target.ram")}`].concat([
        "--record",
        folder.at("destination.record"),
        "--json",
      ]),
    );
    const { address } = await destination.waitFor("listening");
    const relay = await HoldingRelay.start({
      target: String(address),
      hold,
      whenSenderGoes: "drop",
    });
    writeFileSync(folder.at("runs"), "");
    const source = startCli(
      ["send", relay.address, "--memory", `ram=file:${image}`, "--dirty-log", "scan"].concat(
        ["--pause-command", `rm ${folder.at("runs")}`, "--resume-command", resumeIn(folder)],
        ["--channels", "1", "--record", folder.at("source.record"), "--json"],
      ),
    );
    const pair = new Pair(folder, destination, source, relay);
    await relay.holding;
    return pair;
  }

  /** Whether the guest runs at the source. */
  get runsAtSource(): boolean {
    return existsSync(this.folder.at("runs"));
  }

  async handover(ends: readonly string[], flags: readonly string[] = []): Promise<CliExit> {
    const records = ends.map((end) => this.folder.at(`${end}.record`));
    return await runCli(["handover", ...records, ...flags, "--json"]);
  }

  /** Settles it with both records, and has the guest run at the source where that is right. */
  async settle(): Promise<CliExit> {
    const flags = ["--settle", "--resume-command", resumeIn(this.folder)];
    return await this.handover(["source", "destination"], flags);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.source[Symbol.asyncDispose]();
    await this.destination[Symbol.asyncDispose]();
    await this.relay[Symbol.asyncDispose]();
  }
}

function resumeIn(folder: CliFolder): string {
  return `touch ${folder.at("runs")}`;
}

function expectTold(told: CliExit, verdict: Verdict): void {
  const { owner } = VERDICTS[verdict];
  expect(must(told.events.at(-1), "it tells something")).toMatchObject({
    event: "handover",
    owner,
    verdict,
  });
  expect(told.status).toBe(owner === "unknown" ? 1 : 0);
}

const BOTH = ["source", "destination"];

test(`a destination that is killed before COMMIT came gives the guest back (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using pair = await Pair.heldAt(folder, "commit");
  pair.destination.kill("SIGKILL");
  expect(failureOf(await pair.source.exit).code).toBe("HANDOVER_UNKNOWN");
  expectTold(await pair.handover(["source"]), "in doubt");
  expectTold(await pair.handover(["source"], ["--settle"]), "in doubt");
  const told = await pair.handover(BOTH);
  expectTold(told, "undecided");
  const { source, destination } = must(told.events.at(-1), "it tells something");
  expect(source).toMatchObject({ migration: expect.stringMatching(/^[0-9a-f]{32}$/) });
  expect(destination).toMatchObject({ migration: (source as HandoverNote).migration });
  expect(pair.runsAtSource).toBe(false);
  expectTold(await pair.settle(), "at the source");
  expect(pair.runsAtSource).toBe(true);
  expectTold(await pair.handover(["source"]), "not handed over");
});

test(`a source that is killed at COMMIT may have its guest back (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using pair = await Pair.heldAt(folder, "commit");
  pair.source.kill("SIGKILL");
  expect(failureOf(await pair.destination.exit).code).toBe("CHANNEL_LOST");
  expectTold(await pair.handover(["source"]), "in doubt");
  expectTold(await pair.handover(BOTH), "at the source");
  expect(pair.runsAtSource).toBe(false);
  expectTold(await pair.settle(), "at the source");
  expect(pair.runsAtSource).toBe(true);
});

test(`a guest that runs at the destination stays there, whatever the source heard (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using pair = await Pair.heldAt(folder, "running");
  pair.source.kill("SIGKILL");
  expect((await pair.destination.exit).status).toBe(0);
  expectTold(await pair.handover(BOTH), "at the destination");
  expectTold(await pair.settle(), "at the destination");
  expect(pair.runsAtSource).toBe(false);
  expectTold(await pair.handover(["source"]), "handed over");
  const word = await pair.handover(["source"], ["--settle", "--owner", "source"]);
  expect(word.status).toBe(2);
});

test(`COMMIT that comes after the guest was taken back runs nothing (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using pair = await Pair.heldAt(folder, "commit");
  expectTold(await pair.handover(["destination"], ["--settle"]), "at the source");
  pair.relay.release();
  expect(failureOf(await pair.destination.exit).code).toBe("HOST_FAILED");
  expect(failureOf(await pair.source.exit).code).toBe("HANDOVER_UNKNOWN");
  expect(pair.runsAtSource).toBe(false);
  expectTold(await pair.settle(), "at the source");
  expect(pair.runsAtSource).toBe(true);
});

test(`without any trouble the record says who has the guest, and is not used again (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  await using pair = await Pair.heldAt(folder, "commit");
  pair.relay.release();
  expect((await pair.source.exit).status).toBe(0);
  expect((await pair.destination.exit).status).toBe(0);
  expectTold(await pair.handover(BOTH), "at the destination");
  const again = await runCli(
    ["receive", "tcp:127.0.0.1:0", "--memory", `ram=file:${folder.at("other.ram")}`].concat([
      "--record",
      folder.at("destination.record"),
      "--json",
    ]),
  );
  expect(again.status).toBe(2);
  const told = await runCli(["handover", ...BOTH.map((end) => folder.at(`${end}.record`))]);
  expect(told.stdout).toBe(
    `owner        destination (at the destination)
source       says destination
destination  says destination, and that it runs
${VERDICTS["at the destination"].advice}
`,
  );
});
