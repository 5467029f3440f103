import { beforeAll, expect, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import * as connections from "../channels/connection.ts";
import { migrateOut } from "../engine/source.ts";
import { warmUp } from "./harness/fault-rig.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { outcomeOf } from "./harness/pair.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";

vi.mock(import("../channels/connection.ts"), { spy: true });

const seed = seedFromEnvironment();

beforeAll(warmUp);

/** As in a process that has not rehearsed. */
async function freshRehearsal() {
  vi.resetModules();
  const { rehearseCoordinator } = await import("../engine/coordinator-rehearsal.ts");
  return rehearseCoordinator;
}

function never(): AbortSignal {
  return new AbortController().signal;
}

test("a rehearsal plays all of a migration, once, and leaves nothing", async () => {
  const rehearse = await freshRehearsal();
  const leaks = new LeakCheck();
  const listen = vi.mocked(connections.listen).mockClear();
  await rehearse(never());
  await rehearse(never());
  expect(listen).toHaveBeenCalledTimes(1);
  await leaks.settled();
});

test("a rehearsal that is cancelled ends wherever it is, leaves nothing, and may be played again", async () => {
  const leaks = new LeakCheck();
  let cancelled = 0;
  for (let turns = 0; ; turns += 1) {
    const rehearse = await freshRehearsal();
    const controller = new AbortController();
    const failure = rehearse(controller.signal).then(
      () => null,
      (error: unknown) => error,
    );
    for (let turn = 0; turn < turns; turn += 1) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    controller.abort();
    const met = await failure;
    await leaks.settled();
    if (met === null) break;
    expect(met).toMatchObject({ code: "CANCELLED" });
    cancelled += 1;
    await rehearse(never());
    await leaks.settled();
  }
  expect(cancelled).toBeGreaterThan(2);
});

test("where nobody may listen there is no rehearsal, and nothing is left", async () => {
  const rehearse = await freshRehearsal();
  const leaks = new LeakCheck();
  vi.mocked(connections.listen).mockRejectedValueOnce(new Error("not here"));
  await expect(rehearse(never())).rejects.toThrow("not here");
  await leaks.settled();
  await rehearse(never());
});

test(`a guest that comes to a rehearsal by mistake stays where it is (SEED=${seed})`, async () => {
  const rehearse = await freshRehearsal();
  const leaks = new LeakCheck();
  const listen = vi.mocked(connections.listen).mockClear();
  const source = new RecordingSource({ seed });
  // The rehearsal's own source comes too late.
  const connected = Promise.withResolvers<never>();
  vi.mocked(connections.connector).mockReturnValueOnce({
    connect: () => connected.promise,
    close() {},
  });
  const rehearsing = rehearse(never()).catch((error: unknown) => error);
  await vi.waitUntil(() => listen.mock.results.length > 0);
  const { address } = await must(listen.mock.results[0], "it listens").value;
  const outcome = await outcomeOf(migrateOut(source, address));
  expect(outcome.failure).toMatchObject({ code: "HOST_FAILED", at: "destination" });
  expect([source.running, source.tracking, source.damage]).toEqual([true, false, null]);
  connected.reject(new Error("too late"));
  expect(await rehearsing).toMatchObject({ code: "HOST_FAILED" });
  await leaks.settled();
});
