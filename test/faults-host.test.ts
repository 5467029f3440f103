import { beforeAll, describe, expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { createDirtyLog } from "../engine/dirty-log.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { SMALL_GUEST } from "./harness/guest-memory.ts";
import {
  Delay,
  hangs,
  hangsAfterActing,
  type Misbehaviour,
  REASON,
  throws,
  throwsAfterActing,
} from "./harness/misbehaviour.ts";
import type { DestinationAction } from "./harness/recording-destination.ts";
import type { SourceAction } from "./harness/recording-source.ts";
import { Relay } from "./harness/relay.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Long beside what a step takes that does not hang, also on a busy machine. */
const STEP_MS = 500;

const SOURCE_STEPS: readonly (readonly [SourceAction, string])[] = [
  ["startDirtyLog", "start the dirty log"],
  ["throttle", "throttle the guest"],
  ["pause", "pause the guest"],
  ["saveDevices", "save devices"],
];

const DESTINATION_STEPS: readonly (readonly [DestinationAction, string])[] = [
  ["prepare", "prepare memory"],
  ["loadDevices", "load devices"],
];

const THROWING: readonly (readonly [string, Misbehaviour])[] = [
  ["throws", throws],
  ["throws after it acted", throwsAfterActing],
];
const HANGING: readonly (readonly [string, Misbehaviour])[] = [
  ["never returns", hangs],
  ["acts and never returns", hangsAfterActing],
];

/** Each round leaves more dirty than it sends, so the third one is throttled. */
const STUBBORN = { autoConverge: true, downtimeLimitMs: 1, maxRounds: 8 } as const;

beforeAll(warmUp);

function stubbornRig(): FaultRig {
  const rig = new FaultRig(seed);
  rig.source.onLook = () => rig.source.writePages(2000);
  return rig;
}

for (const [step, action] of SOURCE_STEPS) {
  const isThrottle = step === "throttle";
  const parameters = isThrottle ? STUBBORN : {};
  const newRig = () => (isThrottle ? stubbornRig() : new FaultRig(seed));

  for (const [how, misbehaviour] of THROWING) {
    test(`a source that cannot ${action} runs on, HOST_FAILED: ${how} (SEED=${seed})`, async () => {
      const rig = newRig();
      rig.source.misbehave(step, misbehaviour);
      const outcome = await rig.fails({ out: parameters });
      expect(verdictsOf(outcome)).toEqual({
        source: "HOST_FAILED at source",
        destination: "HOST_FAILED at source",
      });
      expect(outcome.source.failure?.facts).toEqual({ action, reason: REASON });
      await rig.succeeds();
    });
  }

  for (const [how, misbehaviour] of HANGING) {
    test(`a source too slow to ${action} runs on, HOST_TIMEOUT: ${how} (SEED=${seed})`, async () => {
      const rig = newRig();
      rig.source.misbehave(step, misbehaviour);
      const outcome = await rig.fails({ out: { ...parameters, stepTimeoutMs: STEP_MS } });
      expect(verdictsOf(outcome)).toEqual({
        source: "HOST_TIMEOUT at source",
        destination: "HOST_TIMEOUT at source",
      });
      expect(outcome.source.failure?.facts).toEqual({ action, limitMs: STEP_MS });
      await rig.succeeds();
    });

    test(`a cancel need not wait for a source to ${action}: ${how} (SEED=${seed})`, async () => {
      const rig = newRig();
      const abort = new AbortController();
      rig.source.misbehave(step, (act) => {
        setImmediate(() => abort.abort());
        return misbehaviour(act);
      });
      const outcome = await rig.fails({ out: { ...parameters, signal: abort.signal } });
      expect(verdictsOf(outcome)).toEqual({
        source: "CANCELLED at source",
        destination: "CANCELLED at source",
      });
      await rig.succeeds();
    });
  }
}

for (const [step, action] of DESTINATION_STEPS) {
  for (const [how, misbehaviour] of THROWING) {
    test(`a destination that cannot ${action} ends it, HOST_FAILED: ${how} (SEED=${seed})`, async () => {
      const rig = new FaultRig(seed);
      rig.destination.misbehave(step, misbehaviour);
      const outcome = await rig.fails();
      expect(verdictsOf(outcome)).toEqual({
        source: "HOST_FAILED at destination",
        destination: "HOST_FAILED at destination",
      });
      expect(outcome.source.failure?.facts).toEqual({ action, reason: REASON });
      await rig.succeeds();
    });
  }

  for (const [how, misbehaviour] of HANGING) {
    test(`a destination too slow to ${action} ends it, HOST_TIMEOUT: ${how} (SEED=${seed})`, async () => {
      const rig = new FaultRig(seed);
      rig.destination.misbehave(step, misbehaviour);
      const outcome = await rig.fails({ in: { stepTimeoutMs: STEP_MS } });
      expect(verdictsOf(outcome)).toEqual({
        source: "HOST_TIMEOUT at destination",
        destination: "HOST_TIMEOUT at destination",
      });
      expect(outcome.source.failure?.facts).toEqual({ action, limitMs: STEP_MS });
      await rig.succeeds();
    });

    test(`a cancel need not wait for a destination to ${action}: ${how} (SEED=${seed})`, async () => {
      for (const side of ["source", "destination"] as const) {
        const rig = new FaultRig(seed);
        const { signal, abort } = abortable();
        rig.destination.misbehave(step, (act) => {
          setImmediate(abort);
          return misbehaviour(act);
        });
        const outcome = await rig.fails(
          side === "source" ? { out: { signal } } : { in: { signal } },
        );
        expect(verdictsOf(outcome)).toEqual({
          source: `CANCELLED at ${side}`,
          destination: `CANCELLED at ${side}`,
        });
        await rig.succeeds();
      }
    });
  }
}

test(`a destination that cannot take faults ends it, HOST_FAILED (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const out = { postcopy: "after-rounds" } as const;
  rig.destination.onFaults = () => {
    throw new Error(REASON);
  };
  const outcome = await rig.fails({ out });
  expect(verdictsOf(outcome)).toEqual({
    source: "HOST_FAILED at destination",
    destination: "HOST_FAILED at destination",
  });
  expect(outcome.source.failure?.facts).toEqual({ action: "take faults", reason: REASON });
  await rig.succeeds({ out });
});

test(`memory that threads would only get a copy of takes no guest in (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.destination.misbehave("prepare", async (act) => {
    await act();
    const copied = (rig.destination.blocks ?? []).map((block) => ({
      ...block,
      place: { kind: "shared", buffer: new ArrayBuffer(block.sizeBytes) },
    }));
    return copied as never;
  });
  const outcome = await rig.fails();
  expect(outcome.source.failure).toMatchObject({
    code: "HOST_FAILED",
    at: "destination",
    facts: { reason: expect.stringContaining("needs a SharedArrayBuffer") },
  });
  await rig.succeeds();
});

for (const [step, action, answer, says] of [
  ["startDirtyLog", "start the dirty log", [{ kind: "scan", block: "no such" }], "does not have"],
  [
    "startDirtyLog",
    "start the dirty log",
    SMALL_GUEST.map(({ name }) => createDirtyLog(name, { sizeBytes: 8192, pageBytes: 4096 })),
    "2 pages of 4096 bytes: the block has",
  ],
  [
    "startDirtyLog",
    "start the dirty log",
    SMALL_GUEST.map((block) => ({
      ...createDirtyLog(block.name, block),
      words: new Int32Array(1),
    })),
    "one bit for each page",
  ],
  ["startDirtyLog", "start the dirty log", undefined, "no array"],
  ["saveDevices", "save devices", undefined, "no array"],
  ["saveDevices", "save devices", [{ name: "a", bytes: new Float64Array(8) }], "a Uint8Array"],
  ["saveDevices", "save devices", [{ name: "a", bytes: "state" }], "a Uint8Array"],
  ["saveDevices", "save devices", [{ name: "\ud800", bytes: new Uint8Array(1) }], "UTF-8"],
] as const) {
  test(`a source that answers ${action} wrongly is told what is wrong: ${says} (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    rig.source.misbehave(step, async (act) => {
      await act();
      return answer as never;
    });
    const { source } = await rig.fails();
    expect(source.failure).toMatchObject({
      code: "HOST_FAILED",
      at: "source",
      facts: { action, reason: expect.stringContaining(says) },
    });
    await rig.succeeds();
  });
}

test(`a host's own typed failure is told as it is (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const facts = { block: "ram", path: "/nowhere", reason: "it is not there" };
  rig.destination.misbehave("prepare", async () => {
    throw new MigrationError("MEMORY_UNUSABLE", facts);
  });
  const outcome = await rig.fails();
  for (const { failure } of [outcome.source, outcome.destination]) {
    expect(failure).toMatchObject({ code: "MEMORY_UNUSABLE", facts, at: "destination" });
  }
  await rig.succeeds();
});

test.for(["source", "destination"] as const)(
  `a host at the %s does not say who owns the guest (SEED=${seed})`,
  async (side) => {
    const rig = new FaultRig(seed);
    const claim = async (): Promise<never> => {
      throw new MigrationError("HANDOVER_UNKNOWN", { reason: "so it says" });
    };
    if (side === "source") rig.source.misbehave("saveDevices", claim);
    else rig.destination.misbehave("loadDevices", claim);
    const outcome = await rig.fails();
    for (const { failure } of [outcome.source, outcome.destination]) {
      expect(failure).toMatchObject({ code: "HOST_FAILED", at: side });
      expect(failure?.message).toContain("so it says");
    }
    await rig.succeeds();
  },
);

describe("a destination that is lost", () => {
  const LOST = "HYPERVISOR_LOST at destination";
  const WHY = "it was killed";

  test.for(["agree", "receive", "devices"] as const)(
    `in phase %s ends it at once (SEED=${seed})`,
    async (phase) => {
      const rig = new FaultRig(seed);
      const onPhase = (reached: string) => reached === phase && rig.destination.lose(WHY);
      const outcome = await rig.fails({ in: { onPhase } });
      expect(verdictsOf(outcome)).toEqual({ source: LOST, destination: LOST });
      expect(outcome.source.failure?.facts).toEqual({ reason: WHY });
      expect(rig.destination.calls).not.toContain("loadDevices");
      await rig.succeeds();
    },
  );

  test(`as it loads says itself what happened (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    rig.destination.misbehave("loadDevices", async (act) => {
      rig.destination.lose(WHY);
      await new Promise(setImmediate);
      return await throws(act);
    });
    const outcome = await rig.fails();
    expect(outcome.source.failure).toMatchObject({
      code: "HOST_FAILED",
      facts: { reason: REASON },
    });
    await rig.succeeds();
  });

  test(`as it loads, which it does not notice, gets no guest (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    rig.destination.misbehave("loadDevices", async (act) => {
      const loaded = await act();
      rig.destination.lose(WHY);
      await new Promise(setImmediate);
      return loaded;
    });
    expect(verdictsOf(await rig.fails())).toEqual({ source: LOST, destination: LOST });
    await rig.succeeds();
  });

  test(`before COMMIT comes does not wait for it (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    {
      await using relay = await Relay.start();
      // The source never hears of READY, nor of what follows.
      relay.forge(0, "ready", () => {
        relay.do("stall");
        rig.destination.lose(WHY);
        return Buffer.alloc(0);
      });
      // Before that nothing may stand still for so long, however busy the machine is.
      const outcome = await rig.fails({ relay, out: { channelTimeoutMs: 3000 } });
      expect(verdictsOf(outcome).destination).toBe(LOST);
    }
    await rig.succeeds();
  });

  test(`once the guest runs there is no failure (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    rig.destination.misbehave("resume", async (act) => {
      const resumed = await act();
      rig.destination.lose(WHY);
      return resumed;
    });
    const outcome = await rig.attempt();
    expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
    rig.expectArrived();
  });
});

test(`a guest that was found stopped is left stopped (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.running = false;
  rig.source.misbehave("saveDevices", throws);
  await rig.fails();
  expect(rig.source.calls).toContain("resume");
  await rig.succeeds();
});

test(`what was not asked of a source is not undone (SEED=${seed})`, async () => {
  for (const [phase, undone] of [
    ["agree", []],
    ["precopy", []],
    ["pause", ["startDirtyLog", "stopDirtyLog"]],
    ["rest", ["startDirtyLog", "pause", "resume", "stopDirtyLog"]],
  ] as const) {
    const rig = new FaultRig(seed);
    const { signal, abort } = abortable();
    const onPhase = (reached: string) => reached === phase && abort();
    await rig.fails({ out: { signal, onPhase } });
    expect([phase, ...rig.source.calls]).toEqual([phase, ...undone]);
  }
});

for (const [step, action] of [
  ["resume", "resume the guest"],
  ["throttle", "lift the throttle"],
  ["stopDirtyLog", "stop the dirty log"],
] as const) {
  for (const [how, misbehaviour, reason] of [
    ["throws", throws, REASON],
    ["never returns", hangs, `the host did not finish within ${STEP_MS} ms`],
  ] as const) {
    test(`an undo that fails is GUEST_NOT_RESTORED: ${action} (${how}, SEED=${seed})`, async () => {
      const rig = stubbornRig();
      const { source } = rig;
      source.misbehave("saveDevices", async () => {
        source.misbehave(step, misbehaviour);
        throw new Error("the first failure");
      });
      // The fourth round is the last, so that throttling has begun.
      const out = { ...STUBBORN, maxRounds: 4, nonConvergence: "switch-over" } as const;
      const outcome = await rig.attempt({ out: { ...out, stepTimeoutMs: STEP_MS } });
      expect(outcome.source.failure).toMatchObject({
        code: "GUEST_NOT_RESTORED",
        at: "source",
        facts: { action, reason: expect.stringContaining(reason), after: "HOST_FAILED" },
      });
      // The destination is told what happened first, and has nothing to settle.
      expect(outcome.destination.failure).toMatchObject({
        code: "HOST_FAILED",
        at: "source",
        facts: { action: "save devices" },
      });
      rig.expectDiscarded();
      // All other steps back were taken.
      for (const call of ["resume", "throttle 0", "stopDirtyLog"])
        expect(source.calls).toContain(call);

      await source.resume();
      await source.throttle?.(0);
      await source.stopDirtyLog();
      source.onLook = () => source.writePages(2);
      await rig.succeeds();
    });
  }
}

test(`all undos that fail are told together (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.misbehave("saveDevices", throws);
  rig.source.misbehave("resume", throws);
  rig.source.misbehave("stopDirtyLog", throws);
  const { source } = await rig.attempt();
  expect(source.failure).toMatchObject({
    code: "GUEST_NOT_RESTORED",
    facts: { action: "resume the guest and stop the dirty log", after: "HOST_FAILED" },
  });
});

for (const [how, misbehaviour] of [...THROWING, ...HANGING]) {
  test(`a destination that cannot discard still says what came first: ${how} (SEED=${seed})`, async () => {
    const rig = new FaultRig(seed);
    rig.destination.misbehave("loadDevices", throws);
    rig.destination.misbehave("discard", misbehaviour);
    const outcome = await rig.attempt({ in: { stepTimeoutMs: STEP_MS } });
    expect(verdictsOf(outcome)).toEqual({
      source: "HOST_FAILED at destination",
      destination: "HOST_FAILED at destination",
    });
    rig.expectUnharmed();
    expect(rig.destination.calls).toEqual(["prepare", "loadDevices", "discard"]);
    await rig.succeeds();
  });
}

test(`the source does not wait for the destination to discard (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const discarding = new Delay();
  rig.destination.misbehave("loadDevices", throws);
  rig.destination.misbehave("discard", discarding.misbehaviour);
  let isSourceDone = false;
  rig.source.misbehave("stopDirtyLog", async (act) => {
    await act();
    isSourceDone = true;
    void discarding.end();
    return await act();
  });
  const outcome = await rig.fails();
  expect(isSourceDone).toBe(true);
  expect(verdictsOf(outcome)).toEqual({
    source: "HOST_FAILED at destination",
    destination: "HOST_FAILED at destination",
  });
  await rig.succeeds();
});

function abortable(): { signal: AbortSignal; abort: () => void } {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}
