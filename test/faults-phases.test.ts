import { beforeAll, expect, test } from "vitest";
import { DESTINATION_PHASES, type DestinationPhase, migrateIn } from "../engine/destination.ts";
import { SOURCE_PHASES, type SourcePhase } from "../engine/source.ts";
import { type AttemptOptions, FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const BEFORE_COMMIT_AT_SOURCE = SOURCE_PHASES.filter((phase) => phase !== "commit");
const BEFORE_COMMIT_AT_DESTINATION = DESTINATION_PHASES.filter((phase) => phase !== "resume");

/** Nobody has connected yet: the destination does not know of a source, nor the source of it. */
const ALONE: readonly (SourcePhase | DestinationPhase)[] = ["connect", "listen"];

beforeAll(warmUp);

/** Options by which something happens when one end enters a phase. */
function atPhase(
  side: "source" | "destination",
  phase: string,
  happens: () => void,
  signal?: AbortSignal,
): AttemptOptions {
  const onPhase = (reached: string): void => {
    if (reached === phase) happens();
  };
  const options = { onPhase, ...(signal === undefined ? {} : { signal }) };
  return side === "source" ? { out: options } : { in: options };
}

for (const phase of BEFORE_COMMIT_AT_SOURCE) {
  test(`a source cancelled in phase ${phase} keeps its guest (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const abort = new AbortController();
    const outcome = await rig.fails(atPhase("source", phase, () => abort.abort(), abort.signal));
    expect(outcome.source.failure).toMatchObject({
      code: "CANCELLED",
      at: "source",
      facts: { phase },
    });
    if (!ALONE.includes(phase))
      expect(outcome.destination.failure).toMatchObject({
        code: "CANCELLED",
        at: "source",
        facts: { phase },
      });
    await rig.succeeds();
  });

  test(`a source cancelled in the midst of phase ${phase} keeps its guest (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const abort = new AbortController();
    const cancel = () => setImmediate(() => abort.abort());
    const outcome = await rig.attempt(atPhase("source", phase, cancel, abort.signal));
    // The phase may have ended before: then the next one is cancelled, or none is left.
    if (outcome.source.failure === null) {
      rig.expectArrived();
      return;
    }
    expect(outcome.source.failure.code).toBe("CANCELLED");
    rig.expectUnharmed();
    rig.expectDiscarded();
    await rig.succeeds();
  });

  test(`an error in the embedder's callback of phase ${phase} keeps the guest (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const outcome = await rig.fails(
      atPhase("source", phase, () => {
        throw new Error("a bug of the embedder");
      }),
    );
    expect(outcome.source.failure).toMatchObject({
      code: "INTERNAL",
      facts: { reason: "a bug of the embedder" },
    });
    await rig.succeeds();
  });

  if (!ALONE.includes(phase)) {
    test(`a link that is lost as the source enters ${phase} leaves it its guest (SEED=${seed})`, async () => {
      await using relay = await Relay.start();
      const rig = new FaultRig(seed);
      const outcome = await rig.fails({
        ...atPhase("source", phase, () => relay.do("cut")),
        relay,
      });
      expect(outcome.source.failure?.code).toBe("CHANNEL_LOST");
      expect(outcome.destination.failure?.code).toBe("CHANNEL_LOST");
      await relay[Symbol.asyncDispose]();
      await rig.succeeds();
    });
  }
}

for (const phase of BEFORE_COMMIT_AT_DESTINATION) {
  test(`a destination cancelled in phase ${phase} leaves the guest (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const abort = new AbortController();
    const outcome = await rig.fails(
      atPhase("destination", phase, () => abort.abort(), abort.signal),
    );
    const failure = { code: "CANCELLED", at: "destination", facts: { phase } };
    expect(outcome.destination.failure).toMatchObject(failure);
    if (!ALONE.includes(phase)) expect(outcome.source.failure).toMatchObject(failure);
    await rig.succeeds();
  });

  test(`an error in the callback of the destination's ${phase} leaves the guest (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    const outcome = await rig.fails(
      atPhase("destination", phase, () => {
        throw new Error("a bug of the embedder");
      }),
    );
    expect(outcome.destination.failure?.code).toBe("INTERNAL");
    if (!ALONE.includes(phase)) {
      expect(outcome.source.failure).toMatchObject({ code: "INTERNAL", at: "destination" });
    }
    await rig.succeeds();
  });

  if (!ALONE.includes(phase)) {
    test(`a link that is lost as the destination enters ${phase} leaves the guest (SEED=${seed})`, async () => {
      await using relay = await Relay.start();
      const rig = new FaultRig(seed);
      const options = atPhase("destination", phase, () => relay.do("cut"));
      const outcome = await rig.fails({ ...options, relay });
      expect(verdictsOf(outcome).destination).toMatch(/^CHANNEL_LOST/);
      expect(verdictsOf(outcome).source).toMatch(/^CHANNEL_LOST/);
      await relay[Symbol.asyncDispose]();
      await rig.succeeds();
    });
  }
}

test(`a cancel before the beginning touches nothing, at either end (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const signal = AbortSignal.abort();
  const phases: string[] = [];
  const onPhase = (phase: string) => phases.push(phase);
  const cancelled = { code: "CANCELLED" };
  expect((await rig.fails({ out: { signal, onPhase } })).source.failure).toMatchObject(cancelled);
  const { destination } = await rig.fails({ in: { signal, onPhase } });
  expect(destination.failure).toMatchObject(cancelled);
  expect(phases).toEqual([]);
  expect([...rig.source.calls, ...rig.destination.calls]).toEqual([]);
  await rig.succeeds();
});

test(`a cancel after COMMIT comes too late, at either end (SEED=${seed})`, async () => {
  for (const [side, phase] of [
    ["source", "commit"],
    ["destination", "resume"],
  ] as const) {
    const rig = new FaultRig(seed);
    const abort = new AbortController();
    await rig.succeeds(atPhase(side, phase, () => abort.abort(), abort.signal));
  }
});

test(`an error in a callback after COMMIT changes nothing, at either end (SEED=${seed})`, async () => {
  for (const [side, phase] of [
    ["source", "commit"],
    ["destination", "resume"],
  ] as const) {
    const rig = new FaultRig(seed);
    await rig.succeeds(
      atPhase(side, phase, () => {
        throw new Error("a bug of the embedder");
      }),
    );
  }
});

test(`an error in the callback for progress ends the attempt, not the process (SEED=${seed})`, async () => {
  for (const side of ["out", "in"] as const) {
    const rig = new FaultRig(seed);
    // Progress is told while the guest comes to rest, which takes as long as it must.
    const told = Promise.withResolvers<void>();
    rig.source.misbehave("pause", async (act) => {
      await told.promise;
      return await act();
    });
    const onProgress = () => {
      told.resolve();
      throw new Error("a bug of the embedder");
    };
    const outcome = await rig.fails({ [side]: { onProgress } });
    expect(outcome[side === "out" ? "source" : "destination"].failure?.code).toBe("INTERNAL");
    await rig.succeeds();
  }
});

test(`an asynchronous callback that fails ends the attempt, not the process (SEED=${seed})`, async () => {
  const fails = async () => {
    throw new Error("a bug of the embedder");
  };
  for (const options of [{ out: { onMigration: fails } }, { in: { onMigration: fails } }]) {
    const rig = new FaultRig(seed);
    const { source, destination } = await rig.fails(options);
    expect((options.out ? source : destination).failure?.code).toBe("INTERNAL");
    await rig.succeeds();
  }
  const arrival = migrateIn(new RecordingDestination(), "tcp:127.0.0.1:0", { onListening: fails });
  await expect(arrival).rejects.toMatchObject({ code: "INTERNAL", at: "destination" });
});
