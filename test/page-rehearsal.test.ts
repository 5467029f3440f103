import fs, { readdirSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { getPriority } from "node:os";
import { expect, test, vi } from "vitest";
import { errnoOf } from "../base/errors.ts";
import * as connections from "../channels/connection.ts";
import { type End, rehearsePages } from "../workers/page-rehearsal.ts";
import { PageSender } from "../workers/page-sender.ts";
import type { ReceiveTask, SendTask, TaskReport } from "../workers/protocol.ts";

vi.mock(import("../channels/connection.ts"), { spy: true });
vi.mock(import("../workers/page-rehearsal.ts"), { spy: true });

const ENDS: readonly End[] = ["source", "destination"];

const ACTS = 4;
const BLOCKS = 4;
const BLOCK_PAGES = 256;
/** Pages of 32 that are dirty, by turns. */
const DIRTY_OF_32 = [32, 32, 17, 9];

/** What a whole rehearsal moves: 76 turns at a source, and 30 with all pages at a destination. */
const PAGES = {
  source: (ACTS * 76 * BLOCKS * BLOCK_PAGES * mean(DIRTY_OF_32)) / 32,
  destination: ACTS * 30 * BLOCKS * BLOCK_PAGES,
} as const satisfies Record<End, number>;

function mean(all: readonly number[]): number {
  return all.reduce((sum, one) => sum + one, 0) / all.length;
}

function openFiles(): number {
  return readdirSync("/proc/self/fd").length;
}

test.for(ENDS)(
  "a rehearsal of a %s moves every page, and leaves nothing open and its thread where it stood",
  async (end) => {
    const before = openFiles();
    const priority = getPriority();
    expect(await rehearsePages(end, () => false)).toBe(PAGES[end]);
    expect(openFiles()).toBe(before);
    expect(getPriority(), "of this thread").toBe(priority);
  },
);

test("a source's thread meets all that comes with a guest: what goes from where it lies, answers, a full connection", async () => {
  const fence = vi.spyOn(PageSender.prototype, "fence");
  const calls = [vi.spyOn(fs, "writevSync"), vi.spyOn(fs, "writeSync")] as const;
  syncBuiltinESMExports();
  try {
    await rehearsePages("source", () => false);
    const [straight, others] = calls;
    expect(straight).toHaveReturned();
    const refused = others.mock.results.filter(({ type }) => type === "throw");
    expect(refused.map(({ value }) => errnoOf(value))).toEqual(Array(ACTS).fill("EAGAIN"));
    expect(fence).toHaveReturnedTimes(ACTS * 76);
  } finally {
    vi.restoreAllMocks();
    syncBuiltinESMExports();
  }
});

test.for(ENDS)("a rehearsal of a %s ends at its next turn when it is over", async (end) => {
  const before = openFiles();
  expect(await rehearsePages(end, () => true)).toBe(0);
  // Asked before each act, too.
  let asked = 0;
  const pages = await rehearsePages(end, () => ++asked > 1 + 3);
  expect(asked).toBe(1 + 4 + 1);
  expect(pages).toBeGreaterThan(0);
  expect(pages).toBeLessThanOrEqual(3 * BLOCKS * BLOCK_PAGES);
  expect(openFiles()).toBe(before);
});

test.for(ENDS)(
  "where nobody may listen a %s rehearses nothing, and leaves nothing open",
  async (end) => {
    const before = openFiles();
    vi.mocked(connections.listen).mockRejectedValueOnce(new Error("not here"));
    await expect(rehearsePages(end, () => false)).rejects.toThrow("not here");
    expect(openFiles()).toBe(before);
  },
);

/** A bulk channel's thread, here. */
async function threadOf(end: End) {
  vi.resetModules();
  const { rehearsePages: rehearse } = await import("../workers/page-rehearsal.ts");
  const { default: work } =
    end === "source"
      ? await import("../workers/send-worker.ts")
      : await import("../workers/receive-worker.ts");
  const perform = async (task: SendTask & ReceiveTask): Promise<TaskReport> => await work(task);
  return { perform, rehearse: vi.mocked(rehearse).mockReset() };
}

test.for(ENDS)(
  "a thread of a %s that is made ready rehearses until somebody wants one",
  async (end) => {
    const { perform, rehearse } = await threadOf(end);
    const wanted = new Int32Array(1);
    rehearse.mockResolvedValueOnce(1);
    expect(await perform({ kind: "ready", wanted })).toEqual({ state: "done", pages: 0 });
    expect(rehearse).toHaveBeenCalledExactlyOnceWith(end, expect.any(Function));
    const isOver = rehearse.mock.lastCall?.[1];
    expect(isOver?.()).toBe(false);
    wanted[0] = 1;
    expect(isOver?.()).toBe(true);
  },
);

test.for(ENDS)(
  "a thread of a %s does nothing else until its rehearsal is over, and serves also where that fails",
  async (end) => {
    const { perform, rehearse } = await threadOf(end);
    const rehearsing = Promise.withResolvers<number>();
    rehearse.mockReturnValueOnce(rehearsing.promise);
    const told: string[] = [];
    const ready = perform({ kind: "ready", wanted: new Int32Array(1) }).then(() =>
      told.push("ready"),
    );
    const forgotten = perform({ kind: "forget" }).then(() => told.push("forgotten"));
    await new Promise((resolve) => setImmediate(resolve));
    expect(told).toEqual([]);
    rehearsing.reject(new Error("not here"));
    await Promise.all([ready, forgotten]);
    expect(told).toEqual(["ready", "forgotten"]);
  },
);
