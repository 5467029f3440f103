import { beforeAll, expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import { migrateOut, SOURCE_PHASES } from "../engine/source.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { outcomeOf } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { seedFromEnvironment } from "./prng.ts";

/**
 * The scenarios of QEMU's own migration tests that have a counterpart here, under QEMU's names. Each
 * is thin: what it touches has tests of its own that go deeper.
 */
const seed = seedFromEnvironment();

beforeAll(warmUp);

for (const kind of ["unix", "tcp"] as const) {
  test(`precopy/${kind}/plain: completed, memory is valid, one guest runs (SEED=${seed})`, async () => {
    await new FaultRig(seed).succeeds({ kind });
  });
}

test(`precopy/unix/xbzrle: completed after two rounds or more, and deltas were sent (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.onLook = () => rig.source.writePages(400);
  const out = { xbzrle: true, maxRounds: 4, downtimeLimitMs: 1, nonConvergence: "switch-over" };
  const { source } = await rig.succeeds({ kind: "unix", out: { ...out } as never });
  expect(source.report?.rounds.length).toBeGreaterThanOrEqual(2);
  expect(source.report?.pages.delta).toBeGreaterThan(0);
});

test(`multifd/tcp/plain/none: four channels share the pages (SEED=${seed})`, async () => {
  const { source } = await new FaultRig(seed).succeeds({ out: { channels: 4 } });
  const bulk = source.report?.channels.filter(({ lane }) => lane === "bulk") ?? [];
  expect(bulk.length).toBe(4);
  for (const { sentBytes } of bulk) expect(sentBytes).toBeGreaterThan(0);
});

test(`multifd/tcp/plain/cancel: of 16 channels, then a second destination (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const abort = new AbortController();
  rig.source.onLook = () => abort.abort();
  // 32 threads take a while to start on a busy machine.
  const many = { channels: 16, connectTimeoutMs: 20_000 };
  const outcome = await rig.fails({ out: { ...many, signal: abort.signal } });
  expect(verdictsOf(outcome)).toEqual({
    source: "CANCELLED at source",
    destination: "CANCELLED at source",
  });
  rig.source.onLook = () => {};
  await rig.succeeds({ out: many });
});

test(`cancel/src/after/none: a cancel before the beginning touches nothing (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const outcome = await rig.fails({ out: { signal: AbortSignal.abort() } });
  expect(outcome.source.failure?.code).toBe("CANCELLED");
  expect(rig.source.calls).toEqual([]);
  await rig.succeeds();
});

/** QEMU's states, and the phases here in which a migration is in them. */
const STATES = {
  setup: ["connect", "agree"],
  active: ["precopy"],
  "pre-switchover": ["pause", "rest", "devices", "ready"],
} as const;

for (const [state, phases] of Object.entries(STATES)) {
  test(`cancel/src/after/${state}: the guest runs on, and a retry succeeds (SEED=${seed})`, async () => {
    for (const phase of phases) {
      const rig = new FaultRig(seed);
      const abort = new AbortController();
      const onPhase = (reached: string) => void (reached === phase && abort.abort());
      const outcome = await rig.fails({ out: { signal: abort.signal, onPhase } });
      expect(outcome.source.failure).toMatchObject({ code: "CANCELLED", facts: { phase } });
      if (phase === phases.at(-1)) await rig.succeeds();
    }
  });
}

test(`cancel/src/after/cancelling: a second cancel changes nothing (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const abort = new AbortController();
  rig.source.misbehave("resume", async (act) => {
    abort.abort(); // As the first one is being carried out.
    return await act();
  });
  const onPhase = (phase: string) => void (phase === "devices" && abort.abort());
  const outcome = await rig.fails({ out: { signal: abort.signal, onPhase } });
  expect(verdictsOf(outcome).source).toBe("CANCELLED at source");
  abort.abort(); // And when it is over: cancel/src/after/cancelled.
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`cancel/src/after/completed: it comes too late, the guest stays there (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const abort = new AbortController();
  await rig.succeeds({ out: { signal: abort.signal } });
  abort.abort();
  rig.expectArrived();
});

test(`cancel/src/after/failed: the guest runs on as it did (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const abort = new AbortController();
  rig.source.misbehave("saveDevices", async () => {
    throw new Error("a device is broken");
  });
  const outcome = await rig.fails({ out: { signal: abort.signal } });
  expect(verdictsOf(outcome).source).toBe("HOST_FAILED at source");
  abort.abort();
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`bad_dest: without a listener it fails by name, and the guest still runs (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const phases: string[] = [];
  const { failure } = await outcomeOf(
    migrateOut(rig.source, "tcp:127.0.0.1:1", {
      connectTimeoutMs: 500,
      onPhase: (phase) => void phases.push(phase),
    }),
  );
  expect(failure).toMatchObject({ code: "CONNECT_FAILED", at: "source" });
  expect(failure?.message).toContain("127.0.0.1:1");
  expect(phases).toEqual(SOURCE_PHASES.slice(0, 1));
  rig.expectUnharmed();
  await rig.succeeds();
});

/** A destination that takes only the guest that it knows, where both sides name theirs. */
class Choosy extends RecordingDestination {
  readonly #known: string;

  constructor(known: string) {
    super();
    this.#known = known;
  }

  override async prepare(
    announced: readonly BlockAnnouncement[],
    description = "",
  ): Promise<readonly Block[]> {
    if (description !== "" && this.#known !== "" && description !== this.#known) {
      const problems = [`it is ${description}, wanted is ${this.#known}`];
      throw new MigrationError("GUEST_MISMATCH", { problems });
    }
    return await super.prepare(announced);
  }
}

for (const [name, ours, theirs, verdict] of [
  ["validate_uuid", "1-1", "1-1", "completed"],
  ["validate_uuid_error", "1-1", "2-2", "GUEST_MISMATCH at destination"],
  ["validate_uuid_src_not_set", "", "2-2", "completed"],
  ["validate_uuid_dst_not_set", "1-1", "", "completed"],
] as const) {
  test(`${name}: a guest named "${ours}" for one named "${theirs}" is ${verdict} (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    Object.assign(rig.source, { description: ours });
    rig.destination = new Choosy(theirs);
    const outcome = await (verdict === "completed" ? rig.attempt() : rig.fails());
    expect(verdictsOf(outcome)).toEqual({ source: verdict, destination: verdict });
    if (verdict === "completed") rig.expectArrived();
  });
}
