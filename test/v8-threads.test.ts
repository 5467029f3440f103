import { getPriority, setPriority } from "node:os";
import { expect, onTestFinished, type TestContext, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import { rewrittenGuest, TouchedGuest } from "../bench/touched-guest.ts";
import { holdBack, v8Threads } from "../engine/v8-threads.ts";
import { migratePair } from "./harness/pair.ts";

/** Behind everything else that runs at all times. */
const LAST = 19;

/** More than Linux has. */
const NO_THREAD = 2 ** 22 + 1;

const threads = v8Threads();

function nices(): number[] {
  return threads.map((thread) => getPriority(thread));
}

/** Where a thread may not rise again nobody is held back. */
function mayRise(): boolean {
  const thread = must(threads[0], "V8 has threads");
  const nice = getPriority(thread);
  try {
    setPriority(thread, nice - 1);
    setPriority(thread, nice);
    return true;
  } catch {
    return false;
  }
}

function skipUnlessTheyMayRise(context: TestContext): void {
  if (!mayRise()) context.skip("threads may not rise here (CAP_SYS_NICE): nobody is held back");
}

test("V8's own threads are found among those of this process", () => {
  expect(threads.length).toBeGreaterThan(0);
  expect(threads).not.toContain(process.pid);
});

test("V8's threads stand last until everybody who holds them back has let go, and then as before", (context) => {
  skipUnlessTheyMayRise(context);
  const before = nices();
  const held = before.map(() => LAST);
  const letGo = [holdBack(threads), holdBack(threads)];
  expect(nices()).toEqual(held);
  letGo[0]?.();
  letGo[0]?.();
  expect(nices(), "one still holds them").toEqual(held);
  letGo[1]?.();
  expect(nices()).toEqual(before);
  const again = holdBack(threads);
  expect(nices()).toEqual(held);
  again();
  expect(nices()).toEqual(before);
});

test("a thread that is gone, or stands last already, is nobody's to raise", (context) => {
  skipUnlessTheyMayRise(context);
  const thread = must(threads[0], "V8 has threads");
  const before = getPriority(thread);
  onTestFinished(() => setPriority(thread, before));
  setPriority(thread, LAST);
  holdBack([thread, NO_THREAD])();
  expect(getPriority(thread)).toBe(LAST);
});

test("V8's threads stand last while memory follows a guest, and not before or after", async (context) => {
  skipUnlessTheyMayRise(context);
  const before = nices();
  const held = before.map(() => LAST);
  const shape = { bytes: 4 * MIB, pageBytes: 4096 };
  const met = new Map<string, number[]>();
  const { source, destination } = await migratePair({
    source: rewrittenGuest(new SharedArrayBuffer(shape.bytes), shape),
    destination: new TouchedGuest(new SharedArrayBuffer(shape.bytes), { faults: 0, pauseMs: 0 }),
    out: {
      postcopy: "after-rounds",
      onPhase: (phase) => met.set(phase, nices()),
    },
  });
  expect([source.failure, destination.failure]).toEqual([null, null]);
  expect(met.get("precopy")).toEqual(before);
  expect(met.get("pause")).toEqual(before);
  expect(met.get("postcopy")).toEqual(held);
  expect(nices()).toEqual(before);
});

test("where they may not rise again they are left as they are", async () => {
  vi.resetModules();
  const before = nices();
  const asked: number[] = [];
  vi.doMock("node:os", () => ({
    getPriority,
    setPriority(_thread: number, nice: number) {
      asked.push(nice);
      throw new Error("EACCES");
    },
  }));
  onTestFinished(() => void vi.doUnmock("node:os"));
  const { holdBack: holdBackHere } = await import("../engine/v8-threads.ts");
  holdBackHere(threads)();
  expect(asked, "each is tried").toEqual(before.map((nice) => nice - 1));
  expect(nices()).toEqual(before);
});
