import { truncateSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import { DESTINATION_PHASES } from "../engine/destination.ts";
import { SOURCE_PHASES } from "../engine/source.ts";
import { type Report, STATISTICS } from "../engine/statistics.ts";
import { CliFolder, isSameFile } from "./fixtures/cli-folder.ts";
import { failureOf } from "./fixtures/cli-outcome.ts";
import { type CliExit, startCli } from "./run-cli.ts";

const PAGE_BYTES = 4096;
const RAM_BYTES = 6 * MIB;
const ROM_BYTES = 33 * PAGE_BYTES;
const PAGES = (RAM_BYTES + ROM_BYTES) / PAGE_BYTES;

interface Pair {
  readonly folder: CliFolder;
  /** `--memory` flags of each end, or anything else that it is given. */
  readonly source?: readonly string[];
  readonly destination?: readonly string[];
}

/** A guest of two blocks goes from the folder's `ram` and `rom` to its `new-ram` and `new-rom`. */
async function migrate(pair: Pair): Promise<{ left: CliExit; arrived: CliExit }> {
  const { folder } = pair;
  const blocks = (prefix: string) =>
    ["ram", "rom"].flatMap((name) => ["--memory", `${name}=file:${folder.at(`${prefix}${name}`)}`]);
  const taken = pair.destination ?? blocks("new-");
  await using destination = startCli(["receive", "tcp:127.0.0.1:0", "--json", ...taken]);
  const { address } = await destination.waitFor("listening");
  const given = pair.source ?? blocks("");
  await using source = startCli(["send", String(address), "--json", "--channels=2", ...given]);
  const [left, arrived] = await Promise.all([source.exit, destination.exit]);
  return { left, arrived };
}

function guestIn(folder: CliFolder): void {
  folder.image("ram", { bytes: RAM_BYTES, seed: 40 });
  folder.image("rom", { bytes: ROM_BYTES, seed: 41 });
}

async function expectArrived(folder: CliFolder, exits: { left: CliExit; arrived: CliExit }) {
  for (const { status, stderr } of [exits.left, exits.arrived]) {
    expect([status, stderr]).toEqual([0, ""]);
  }
  for (const name of ["ram", "rom"]) {
    expect(await isSameFile(folder.at(name), folder.at(`new-${name}`))).toBe(true);
  }
}

function reportOf(exit: CliExit): Report {
  const last = must(exit.events.at(-1), "it says how it ended");
  expect(last.event).toBe("completed");
  return last["report"] as Report;
}

/** The dotted paths of a value's leaves, as STATISTICS names them. */
function pathsOf(value: unknown, path = ""): string[] {
  if (Array.isArray(value)) return value.flatMap((element) => pathsOf(element, `${path}[]`));
  if (typeof value !== "object" || value === null) return [path];
  return Object.entries(value).flatMap(([key, field]) =>
    pathsOf(field, path === "" ? key : `${path}.${key}`),
  );
}

/** What is always told, in the order of letters. */
function promisedOf(table: Readonly<Record<string, object>>): string[] {
  const rows = Object.entries(table).filter(([, row]) => !("optional" in row));
  return rows.map(([path]) => path).sort();
}

test("both ends say what happens in the promised order, and end with 0", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  const exits = await migrate({ folder });
  await expectArrived(folder, exits);
  const told = ({ events }: CliExit) =>
    events
      .filter(({ event }) => event !== "progress")
      .map(({ event, phase }) => (event === "phase" ? phase : event));
  expect(told(exits.left)).toEqual([...SOURCE_PHASES, "completed"]);
  expect(told(exits.arrived)).toEqual(["listening", ...DESTINATION_PHASES, "completed"]);
  const { address } = must(exits.arrived.events[0], "it listens");
  expect(address).toMatch(/^tcp:127\.0\.0\.1:[1-9]\d*$/);
});

test("the report has every promised figure at both ends, and they agree", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  const { left, arrived } = await migrate({ folder });
  const [source, destination] = [reportOf(left), reportOf(arrived)];
  for (const report of [source, destination]) {
    expect([...new Set(pathsOf(report))].sort()).toEqual(promisedOf(STATISTICS.report));
    expect(report.guestBytes).toBe(RAM_BYTES + ROM_BYTES);
    expect(report.totalMs).toBeGreaterThan(report.downtimeMs);
    const parts = Object.values(report.downtime).reduce((sum, part) => sum + part, 0);
    expect(parts).toBeCloseTo(report.downtimeMs, 3);
    const { zero, unchanged, delta, compressed, raw, untouched } = report.pages;
    expect(zero + unchanged + delta + compressed + raw).toBe(PAGES);
    expect(untouched).toBe(zero);
    expect(report.channels.map(({ id, lane }) => [id, lane])).toEqual([
      [0, "main"],
      [1, "bulk"],
      [2, "bulk"],
    ]);
    const sent = report.channels.reduce((sum, { sentBytes }) => sum + sentBytes, 0);
    expect(report.sentBytes).toBe(sent);
    expect(report.cpuMs).toBeGreaterThan(0);
  }
  const common = (report: Report) => ({
    totalMs: report.totalMs,
    downtime: report.downtime,
    rounds: report.rounds,
    pages: report.pages,
    bulk: report.channels.slice(1).map(({ sentBytes }) => sentBytes),
  });
  expect(common(destination)).toEqual(common(source));
});

test("progress has every promised figure, several times while it lasts", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  await using destination = startCli([
    ...["receive", "tcp:127.0.0.1:0", "--json"],
    ...["--memory", `ram=file:${folder.at("new-ram")}`],
  ]);
  const { address } = await destination.waitFor("listening");
  await using source = startCli([
    ...["send", String(address), "--json", "--max-bandwidth", "4MiB/s"],
    ...["--memory", `ram=file:${folder.at("ram")}`],
  ]);
  const exits = await Promise.all([source.exit, destination.exit]);
  for (const { events } of exits) {
    const progress = events.filter(({ event }) => event === "progress");
    expect(progress.length).toBeGreaterThan(1);
    for (const { event: _event, ...figures } of progress) {
      // Only a guest that runs before its memory is there has faults.
      const promised = Object.keys(STATISTICS.progress).filter(
        (path) => !path.startsWith("faults"),
      );
      expect(pathsOf(figures).sort()).toEqual(promised.sort());
      // A destination hears of the memory when both agree.
      const isTold = !["listen", "agree"].includes(String(figures["phase"]));
      if (isTold) expect(figures["totalBytes"]).toBe(RAM_BYTES);
    }
    expect(progress.at(-1)?.["totalBytes"]).toBe(RAM_BYTES);
    const sent = progress.map(({ sentBytes }) => Number(sentBytes));
    expect(sent).toEqual(sent.toSorted((one, other) => one - other));
    expect(sent.at(-1)).toBeGreaterThan(0);
  }
});

test("files that are created have the announced size, and what is zero stays a hole", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  writeFileSync(folder.at("rom"), "");
  truncateSync(folder.at("rom"), ROM_BYTES);
  await expectArrived(folder, await migrate({ folder }));
  expect(folder.takenBytes("new-rom")).toBe(0);
  expect(folder.takenBytes("new-ram")).toBeLessThan(RAM_BYTES * 0.8);
});

test("files that are there are taken, and what they held before is gone", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  folder.image("new-ram", { bytes: RAM_BYTES, seed: 42 });
  writeFileSync(folder.at("new-rom"), Buffer.alloc(ROM_BYTES, 0xee));
  const exits = await migrate({ folder });
  await expectArrived(folder, exits);
  expect(reportOf(exits.arrived).pages.untouched).toBe(0);
});

test("one file may hold several blocks, at the source, at the destination or at both", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  const both = folder.at("both");
  const placed = (rom: number) => [
    ...["--memory", `ram=file:${both},offset=${rom + ROM_BYTES},size=${RAM_BYTES}`],
    ...["--memory", `rom=file:${both},offset=${rom},size=${ROM_BYTES}`],
  ];
  const gathered = await migrate({ folder, destination: placed(0) });
  expect(gathered.arrived.status).toBe(0);
  const scattered = await migrate({ folder, source: placed(0) });
  await expectArrived(folder, scattered);
});

test("blocks that would lie in each other's place are refused before anything is written", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  const both = folder.at("both");
  const destination = [
    ...["--memory", `ram=file:${both}`],
    ...["--memory", `rom=file:${folder.path}/./both,offset=${PAGE_BYTES}`],
  ];
  const { left, arrived } = await migrate({ folder, destination });
  for (const exit of [left, arrived]) {
    expect(failureOf(exit)).toMatchObject({ code: "MEMORY_UNUSABLE", at: "destination" });
    expect(failureOf(exit).message).toContain('block "rom" lies there, too');
  }
  expect(folder.names()).toEqual(["ram", "rom"]);
});

for (const { what, destination, problem } of [
  {
    what: "lacks a block",
    destination: (folder: CliFolder) => ["--memory", `ram=file:${folder.at("new-ram")}`],
    problem: { block: "rom", problem: "the destination lacks it" },
  },
  {
    what: "has a block too many",
    destination: (folder: CliFolder) =>
      ["ram", "rom", "vga"].flatMap((name) => ["--memory", `${name}=file:${folder.at(name)}.new`]),
    problem: { block: "vga", problem: "the source lacks it" },
  },
  {
    what: "wants another size",
    destination: (folder: CliFolder) => [
      ...["--memory", `ram=file:${folder.at("new-ram")}`],
      ...["--memory", `rom=file:${folder.at("new-rom")},size=8KiB`],
    ],
    problem: {
      block: "rom",
      problem: `it has ${ROM_BYTES} bytes at the source and 8192 at the destination`,
    },
  },
]) {
  test(`a destination that ${what} fails at both ends and creates nothing`, async () => {
    using folder = new CliFolder();
    guestIn(folder);
    const exits = await migrate({ folder, destination: destination(folder) });
    for (const exit of [exits.left, exits.arrived]) {
      const { code, facts, at } = failureOf(exit);
      expect({ code, facts, at }).toEqual({
        code: "BLOCK_MISMATCH",
        facts: problem,
        at: "destination",
      });
      expect([exit.status, exit.stderr]).toEqual([1, ""]);
    }
    expect(folder.names()).toEqual(["ram", "rom"]);
    await expectArrived(folder, await migrate({ folder }));
  });
}

test("parameters that must agree and do not are named at both ends", async () => {
  using folder = new CliFolder();
  guestIn(folder);
  const source = ["--memory", `ram=file:${folder.at("ram")}`, "--checksum"];
  const destination = ["--memory", `ram=file:${folder.at("new-ram")}`];
  const exits = await migrate({ folder, source, destination });
  for (const exit of [exits.left, exits.arrived]) {
    expect(failureOf(exit)).toMatchObject({
      code: "PARAMETER_MISMATCH",
      facts: { parameter: "checksum", source: "true", destination: "false" },
      at: "destination",
    });
    expect(exit.status).toBe(1);
  }
  expect(folder.has("new-ram")).toBe(false);
});
