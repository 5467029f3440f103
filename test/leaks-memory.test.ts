import { beforeAll, test } from "vitest";
import { KIB } from "../base/units.ts";
import { FaultRig, warmUp } from "./harness/fault-rig.ts";
import { HANGS } from "./harness/hangs.ts";
import { MemoryCheck } from "./harness/memory-held.ts";
import { throws, throwsAfterActing } from "./harness/misbehaviour.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** How often each stage hangs or fails; `TIMES=20` for the whole story. */
const TIMES = Number(process.env["TIMES"] ?? 2);

/** An attempt takes a tenth of a second, and several times that on a busy machine. */
const ATTEMPT_LIMIT_MS = 5000;

/**
 * Less than the smallest table of an attempt, of 328 bytes, when every one of 26 left it behind. An
 * ended pool would be eight times as much, a guest 60,000 times.
 */
const BUFFER_BYTES_MAX = 4 * KIB;

/** A host's steps that fail, besides those that hang. */
const FAILURES: Readonly<Record<string, (rig: FaultRig) => void>> = {
  "a guest that cannot be paused": ({ source }) => source.misbehave("pause", throws),
  "devices that cannot be saved": ({ source }) => source.misbehave("saveDevices", throws),
  "memory that cannot be prepared": ({ destination }) => {
    destination.misbehave("prepare", throwsAfterActing);
  },
  "devices that cannot be loaded": ({ destination }) => {
    destination.misbehave("loadDevices", throwsAfterActing);
  },
};

const STAGES = Object.keys(HANGS).length + Object.keys(FAILURES).length;

beforeAll(warmUp);

/** Each stage hangs until it is cancelled, or fails, and the guest is moved again. */
async function allFail(rig: FaultRig): Promise<void> {
  const { onLook, onPause } = rig.source;
  for (const hang of Object.values(HANGS)) {
    rig.destination = new RecordingDestination();
    await using hanging = await hang(rig);
    const abort = new AbortController();
    void hanging.begun.then(() => abort.abort());
    await rig.fails({
      ...hanging.options,
      out: { xbzrle: true, signal: abort.signal },
      onSourceEnd: () => void hanging[Symbol.asyncDispose](),
    });
    Object.assign(rig.source, { onLook, onPause });
  }
  for (const fail of Object.values(FAILURES)) {
    rig.destination = new RecordingDestination();
    fail(rig);
    await rig.fails();
  }
  // The last ones are this test's own.
  rig.destination = new RecordingDestination();
  rig.source.calls.length = 0;
  await rig.expectNoLeaks();
}

test(
  `stages that hang or fail ${TIMES} times each leave no memory behind (SEED=${seed})`,
  async () => {
    const rig = new FaultRig(seed);
    await allFail(rig);
    const memory = await MemoryCheck.begin();
    for (let time = 0; time < TIMES; time += 1) await allFail(rig);
    await memory.settled(BUFFER_BYTES_MAX);
    await rig.succeeds();
  },
  ATTEMPT_LIMIT_MS * STAGES * (TIMES + 2),
);
