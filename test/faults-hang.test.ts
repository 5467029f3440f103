import { readFileSync } from "node:fs";
import promises from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { type Answer, askControl, openControl } from "../cli/control-socket.ts";
import type { MigrateInOptions } from "../engine/destination.ts";
import { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import { fileGuest, fileGuestDestination } from "../hosts/file-guest.ts";
import { CliFolder } from "./fixtures/cli-folder.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { HANGS } from "./harness/hangs.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { migratePair } from "./harness/pair.ts";
import { Phases } from "./harness/phases.ts";
import { StuckDisk } from "./harness/stuck-disk.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Nothing that does not hang takes so long, also on a busy machine. */
const LIMIT_MS = 1000;

/** Reports of either end while it hangs; it goes on hanging until they were told. */
const REPORTS = 3;

/** With these, a hang that is not answered in time would be a test that takes too long. */
const PATIENT = { channelTimeoutMs: 30_000, stepTimeoutMs: 30_000 };

const FILE_BYTES = 1024 * 1024;

beforeAll(warmUp);

function newEnd(): { recovery: PostcopyRecovery; phases: Phases } {
  return { recovery: new PostcopyRecovery(), phases: new Phases() };
}

function newRig(): { rig: FaultRig; heal(): void } {
  const rig = new FaultRig(seed);
  const { onLook, onPause } = rig.source;
  return { rig, heal: () => Object.assign(rig.source, { onLook, onPause }) };
}

for (const [name, hang] of Object.entries(HANGS)) {
  test(`both ends tell progress and status, and cancel, all the while: ${name} (SEED=${seed})`, async () => {
    for (const side of ["source", "destination"] as const) {
      const { rig, heal } = newRig();
      using folder = new CliFolder();
      const ends = { source: newEnd(), destination: newEnd() };
      const controls = new AsyncDisposableStack();
      for (const [end, { recovery, phases }] of Object.entries(ends)) {
        const phase = () => phases.seen.at(-1) ?? "";
        controls.use(await openControl(folder.at(end), { recovery, phase }));
      }
      await using hanging = await hang(rig);
      let isHanging = false;
      let hadOutcome = false;
      void hanging.begun.then(() => {
        isHanging = true;
      });
      const abort = new AbortController();
      const told = { source: 0, destination: 0 };
      const statuses: Answer[] = [];
      /** Where it hangs nothing goes on, so all that is told is still so when it was. */
      const askBoth = async (): Promise<void> => {
        for (const end of Object.keys(ends)) {
          statuses.push(await askControl(folder.at(end), { do: "status" }));
        }
        abort.abort();
      };
      const optionsOf = (end: "source" | "destination") => ({
        ...PATIENT,
        ...(end === side ? { signal: abort.signal } : {}),
        recovery: ends[end].recovery,
        onPhase: ends[end].phases.note,
        onProgress: () => {
          const hadAll = Math.min(told.source, told.destination) >= REPORTS;
          if (isHanging) told[end] += 1;
          if (!hadAll && Math.min(told.source, told.destination) >= REPORTS) void askBoth();
        },
      });
      const outcome = await rig.fails({
        ...hanging.options,
        out: optionsOf("source"),
        in: optionsOf("destination"),
        // Whoever cancels has its outcome while it hangs; no word may reach the other end before.
        [side === "source" ? "onSourceEnd" : "onDestinationEnd"]: () => {
          hadOutcome = isHanging;
          void hanging[Symbol.asyncDispose]();
        },
      });
      expect(hadOutcome).toBe(true);
      const seen = Object.values(ends).map(({ phases }) => phases.seen.at(-1));
      expect(statuses).toEqual(seen.map((phase) => ({ event: "status", phase, pausedFor: null })));
      expect(outcome[side].failure).toMatchObject({ code: "CANCELLED", at: side });
      await hanging[Symbol.asyncDispose]();
      await controls.disposeAsync();
      heal();
      await rig.succeeds();
    }
  });
}

for (const [name, verdict] of [
  ["a disk at the source, as rounds are sent", "WORKER_DIED at source"],
  ["a disk at the source, as the rest is sent", "WORKER_DIED at source"],
  ["a disk at the destination", "CHANNEL_STALLED at source"],
] as const) {
  test(`a disk that hangs is missed by a limit, and the guest runs on: ${name} (SEED=${seed})`, async () => {
    const { rig, heal } = newRig();
    await using hanging = await must(HANGS[name], "there is such a hang")(rig);
    const limits = { channelTimeoutMs: LIMIT_MS, stepTimeoutMs: LIMIT_MS };
    const outcome = await rig.fails({
      ...hanging.options,
      out: limits,
      in: limits,
      onSourceEnd: () => void hanging[Symbol.asyncDispose](),
    });
    expect(verdictsOf(outcome).source).toBe(verdict);
    heal();
    await rig.succeeds();
  });
}

test(`a thread that hangs is left behind, and nobody is given what it may still write (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  const leaks = new LeakCheck();
  const path = folder.image("source.ram", { bytes: FILE_BYTES, seed });
  const target = folder.image("destination.ram", { bytes: FILE_BYTES, seed: seed + 1 });
  const arrive = async (options: Partial<Parameters<typeof migratePair>[0]> = {}) =>
    await migratePair({
      source: fileGuest([{ name: "ram", path, offset: 0 }]),
      destination: fileGuestDestination([{ name: "ram", path: target, offset: 0 }]),
      out: { ...PATIENT, channels: 1 },
      ...options,
    });
  using disk = new StuckDisk("receive");
  disk.block();
  const abort = new AbortController();
  let reports = Number.NEGATIVE_INFINITY;
  void disk.reached().then(() => {
    reports = 0;
  });
  const onProgress = (): void => {
    reports += 1;
    if (reports === REPORTS) abort.abort();
  };
  const first = await arrive({
    in: { ...PATIENT, signal: abort.signal, onProgress },
    destinationSurroundings: disk.surroundings,
  });
  const { failure } = first.destination;
  expect(failure).toMatchObject({ code: "CANCELLED", at: "destination" });
  expect(failure?.leftover).toContain(target);

  const second = (await arrive()).destination.failure?.toJSON();
  expect(second).toMatchObject({ code: "MEMORY_UNUSABLE", facts: { path: target } });
  expect(second?.leftover).toBeUndefined();

  disk[Symbol.dispose]();
  await leaks.settled();
  expect((await arrive()).destination.failure).toBe(null);
  expect(readFileSync(target).equals(readFileSync(path))).toBe(true);
});

test(`a disk that hangs as memory is made keeps nobody waiting, and nothing of it stays (SEED=${seed})`, async () => {
  using folder = new CliFolder();
  const path = folder.image("source.ram", { bytes: FILE_BYTES, seed });
  const target = folder.at("destination.ram");
  const arrive = async (options: MigrateInOptions = {}) =>
    await migratePair({
      source: fileGuest([{ name: "ram", path, offset: 0 }]),
      destination: fileGuestDestination([{ name: "ram", path: target, offset: 0 }]),
      out: { ...PATIENT, channels: 1 },
      in: { ...PATIENT, ...options },
    });
  const { open } = promises;
  const answer = Promise.withResolvers<void>();
  const hanging = vi.spyOn(promises, "open").mockImplementation(async (...given) => {
    await answer.promise;
    return await open(...given);
  });
  syncBuiltinESMExports();
  onTestFinished(() => {
    hanging.mockRestore();
    syncBuiltinESMExports();
  });
  const abort = new AbortController();
  let reports = 0;
  const onProgress = (): void => {
    reports += 1;
    if (reports === REPORTS) abort.abort();
  };
  const { failure } = (await arrive({ signal: abort.signal, onProgress })).destination;
  expect(failure).toMatchObject({ code: "CANCELLED", at: "destination" });
  expect(hanging).toHaveBeenCalledOnce();

  answer.resolve();
  await hanging.mock.results[0]?.value;
  await expect.poll(() => folder.names()).toEqual(["source.ram"]);
  expect((await arrive()).destination.failure).toBe(null);
  expect(readFileSync(target).equals(readFileSync(path))).toBe(true);
});
