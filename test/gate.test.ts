import { once } from "node:events";
import { getPriority } from "node:os";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, onTestFinished, test, vi } from "vitest";
import { createControl } from "../workers/control.ts";
import { beginPostcopy, closeGate, faultsSoFar, openGate, passGate } from "../workers/gate.ts";

const PASSER = fileURLToPath(new URL("./fixtures/gate-passer.ts", import.meta.url));

const STANDING = fileURLToPath(new URL("./fixtures/gate-standing.ts", import.meta.url));

/** How nice a thread is that stands as this one, or that asks the system for so much itself. */
async function niceOf(as: "lane" | "bulk" | number): Promise<number> {
  const [nice] = await once(new Worker(STANDING, { workerData: { as } }), "message");
  return nice;
}

/** How often a thread got through the gate: word 0 counts, 1 in word 1 ends it. */
function startPasser(control: ReturnType<typeof createControl>): Int32Array {
  const words = new Int32Array(new SharedArrayBuffer(8));
  const worker = new Worker(PASSER, { workerData: { control, words } });
  onTestFinished(async () => {
    Atomics.store(words, 1, 1);
    await worker.terminate();
  });
  return words;
}

/** Waits until the thread got through so many times. */
async function passed(words: Int32Array, times: number): Promise<void> {
  await expect.poll(() => Atomics.load(words, 0), { timeout: 20_000 }).toBeGreaterThan(times);
}

test("faults without end do not starve the background: a gate that stays shut lets it through", async () => {
  const control = createControl(1);
  beginPostcopy(control);
  closeGate(control);
  const words = startPasser(control);
  await passed(words, 100);
  expect(Atomics.load(control.gate, 0)).toBe(1);
});

test("a gate that two have shut opens with the second, and who waits goes on at once", async () => {
  const control = createControl(1);
  beginPostcopy(control);
  closeGate(control);
  closeGate(control);
  openGate(control);
  expect(Atomics.load(control.gate, 0)).toBe(1);
  openGate(control);
  expect(Atomics.load(control.gate, 0)).toBe(0);
  expect(faultsSoFar(control)).toBe(2);
  await passed(startPasser(control), 10_000);
});

test("before post-copy nobody waits, however shut the gate is", () => {
  const control = createControl(1);
  closeGate(control);
  const wait = vi.spyOn(Atomics, "wait");
  onTestFinished(() => wait.mockRestore());
  passGate(control);
  expect(wait).not.toHaveBeenCalled();
});

test("a lane comes before other threads where the system allows it, and bulk threads behind all", async () => {
  const before = getPriority(0);
  expect(await niceOf("lane")).toBe(await niceOf(-15));
  expect(await niceOf("bulk")).toBe(await niceOf(10));
  expect(await niceOf("bulk")).toBeGreaterThan(await niceOf("lane"));
  // It is the thread's own, and no matter to the process.
  expect(getPriority(0)).toBe(before);
});
