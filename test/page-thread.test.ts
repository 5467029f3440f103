import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { siblingModule } from "../base/module.ts";
import { endAll, PageThread } from "../engine/page-thread.ts";
import { BEGUN, ENDED, RELEASED, set } from "./harness/held-worker.ts";
import { addedTo, holdings } from "./harness/holdings.ts";

const MODULE = siblingModule("harness/held-worker", import.meta.url);

/** A thread in the middle of a task, and how that ends. */
async function threadAtWork() {
  const words = new Int32Array(new SharedArrayBuffer(12));
  const thread = new PageThread(MODULE);
  await thread.run(1, { kind: "ready" });
  const outcome = thread.run(1, { words }).catch((error: unknown) => error);
  const { value } = Atomics.waitAsync(words, BEGUN, 0, 20_000);
  await value;
  return { words, thread, outcome };
}

test("a thread is not ended in the middle of its work, where that would take the process along", async () => {
  const { words, thread, outcome } = await threadAtWork();
  const ended = endAll([thread], 20_000);
  // Ended at once, it would be gone before it is released.
  await new Promise((resolve) => setImmediate(resolve));
  set(words, RELEASED);
  expect(await ended).toBe(true);
  expect(Atomics.load(words, ENDED)).toBe(1);
  expect(await outcome).toEqual({ state: "done", pages: 1 });
});

test("a thread that takes longer than its caller waits is told of, and comes to its end all the same", async () => {
  const { words, thread, outcome } = await threadAtWork();
  expect(await endAll([thread], 1)).toBe(false);
  set(words, RELEASED);
  expect(await endAll([thread], 20_000)).toBe(true);
  expect(Atomics.load(words, ENDED)).toBe(1);
  expect(await outcome).toEqual({ state: "done", pages: 1 });
});

test("a thread that does not come to an end is ended by force", async () => {
  const { words, thread, outcome } = await threadAtWork();
  await thread.end(1);
  expect(Atomics.load(words, ENDED)).toBe(0);
  expect(await outcome).toMatchObject({ code: "WORKER_DIED" });
});

test("a thread that was ended is given no more tasks", async () => {
  const before = holdings();
  const thread = new PageThread(MODULE);
  await thread.run(1, { kind: "ready" });
  expect(await endAll([thread], 20_000)).toBe(true);
  await expect(thread.run(1, { kind: "ready" })).rejects.toMatchObject({ code: "WORKER_DIED" });
  expect(await addedTo(before)).toBeNull();
});

test("a thread that is kept is another one to whoever goes on with it", async () => {
  const { words, thread, outcome } = await threadAtWork();
  set(words, RELEASED);
  await outcome;
  const kept: PageThread[] = [];
  expect(
    await endAll([thread], 20_000, { hasRoom: true, keep: (again) => void kept.push(again) }),
  ).toBe(true);
  const again = must(kept[0], "it was kept");
  // Who had it before has no say any more: neither by tasks nor by ending it once more.
  await expect(thread.run(1, { kind: "ready" })).rejects.toMatchObject({ code: "WORKER_DIED" });
  expect(await endAll([thread], 20_000)).toBe(true);
  expect(await again.run(1, { kind: "ready" })).toEqual({ state: "done", pages: 0 });
  expect(await endAll([again], 20_000)).toBe(true);
  expect(kept).toHaveLength(1);
});

test.for(["in the middle of a task", "forget what it knows"])(
  "a thread that hangs is not kept: %s",
  async (where) => {
    const { words, thread, outcome } = await threadAtWork();
    if (where !== "in the middle of a task") {
      set(words, RELEASED);
      await outcome;
      await thread.run(1, { hangsNext: true });
    }
    const kept: PageThread[] = [];
    await thread.end(1, { hasRoom: true, keep: (again) => void kept.push(again) });
    await outcome;
    expect(kept).toEqual([]);
  },
);

test("a thread that has not started yet is ended at once", async () => {
  const thread = new PageThread(MODULE);
  const outcome = thread.run(1, { kind: "ready" }).catch((error: unknown) => error);
  expect(await endAll([thread])).toBe(true);
  await outcome;
});
