import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { assert, must } from "../base/assert.ts";
import { HEADER_BYTES } from "../channels/frame.ts";
import { closeLane, leaveLane, takeLane } from "../workers/lane-state.ts";
import { threadNumber } from "../workers/thread-number.ts";
import { Faulting, LANES, PAGES } from "./fixtures/faulting.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/** vCPUs that fetch what they miss themselves, beside the threads of their lanes. */
const seed = seedFromEnvironment();
const FETCHER = fileURLToPath(new URL("./fixtures/fault-fetcher.ts", import.meta.url));

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

/** The thread of a vCPU that waits for these pages, one after the other. */
class Fetcher {
  readonly worker: Worker;
  readonly came: number[] = [];
  readonly ended: Promise<unknown>;
  thread = 0;

  constructor({ door }: Faulting, seat: number, pages: readonly number[]) {
    this.worker = new Worker(FETCHER, { workerData: { door, seat, pages } });
    this.worker.on("message", ({ thread, page, isThere }) => {
      if (thread !== undefined) this.thread = thread;
      else if (isThere) this.came.push(page);
    });
    this.ended = once(this.worker, "exit");
    onTestFinished(async () => void (await this.worker.terminate()));
  }
}

/** Pages that nothing brings unasked. */
function distant(count: number): number[] {
  const pages = Array.from({ length: count }, (_, index) => (index * 997) % PAGES);
  assert(new Set(pages).size === count, "each is asked for once");
  return pages;
}

function stateOf({ door }: Faulting, lane: number) {
  return must(door.lanes?.states[lane], "a lane has its state");
}

test(`vCPUs fetch for themselves and for each other, and every page comes as it was (SEED=${seed})`, async () => {
  const faulting = await Faulting.start(seed, pairs);
  const random = new Prng(seed);
  const lists = Array.from({ length: 3 * LANES }, () =>
    Array.from({ length: 150 }, () => random.below(PAGES)),
  );
  const fetchers = lists.map((pages, seat) => new Fetcher(faulting, seat, pages));
  await Promise.all(fetchers.map(({ ended }) => ended));
  for (const [seat, pages] of lists.entries()) expect(fetchers[seat]?.came).toEqual(pages);
  for (const page of new Set(lists.flat())) {
    expect(faulting.requestsOf(page).length, `page ${page}`).toBeLessThanOrEqual(1);
  }
  expect(faulting.fetches).toBeGreaterThan(0);
  faulting.expectExact(lists.flat());
  await faulting.end();
  expect(faulting.failures).toEqual([]);
});

/** Until it goes by itself: the first pages may be brought by the lane's thread, which is awake then. */
const FETCHES = 20;

test("what a vCPU has asked for and that takes longer is brought by the lane's thread", async () => {
  const faulting = await Faulting.start(seed, pairs);
  const pages = distant(200);
  const fetcher = new Fetcher(faulting, 0, pages);
  await faulting.until(() => faulting.fetches >= FETCHES);
  faulting.isHeld = true;
  await faulting.until(() => faulting.heldCount > 0);
  const came = fetcher.came.length;
  // It has left the lane, to whose thread it does not matter who asked.
  const state = stateOf(faulting, 0);
  await faulting.until(() => takeLane(state, threadNumber()));
  leaveLane(state);
  faulting.release();
  await fetcher.ended;
  expect(came).toBeLessThan(pages.length);
  expect(fetcher.came).toEqual(pages);
  for (const page of pages) expect(faulting.requestsOf(page), `page ${page}`).toHaveLength(1);
  await faulting.end();
  expect(faulting.failures).toEqual([]);
});

test(`a vCPU fetches over the next link as over the one that broke (SEED=${seed})`, async () => {
  const faulting = await Faulting.start(seed, pairs);
  const random = new Prng(seed);
  const lists = Array.from({ length: 2 * LANES }, () =>
    Array.from({ length: 400 }, () => random.below(PAGES)),
  );
  const fetchers = lists.map((pages, seat) => new Fetcher(faulting, seat, pages));
  const came = (): number => fetchers.reduce((sum, each) => sum + each.came.length, 0);
  for (let leg = 1; leg <= 3; leg += 1) {
    await faulting.until(() => came() > leg * 100);
    const before = faulting.fetches;
    await faulting.reconnect();
    await faulting.until(() => faulting.fetches > before + 10);
  }
  await Promise.all(fetchers.map(({ ended }) => ended));
  for (const [seat, pages] of lists.entries()) expect(fetchers[seat]?.came).toEqual(pages);
  faulting.expectExact(lists.flat());
  await faulting.end();
  expect(faulting.failures).toEqual([]);
});

test("what is wrong with an answer that a vCPU reads, its lane fails of", async () => {
  const faulting = await Faulting.start(seed, pairs);
  const pages = distant(200);
  const fetcher = new Fetcher(faulting, 1, pages);
  await faulting.until(() => faulting.fetches >= FETCHES);
  faulting.tamper = ({ frame }, bytes) => {
    if (frame === "pages") bytes.writeUInt32LE(99, HEADER_BYTES); // There is no such block.
  };
  await faulting.until(() => faulting.failures.length > 0);
  expect(faulting.failures[0]).toMatchObject({ code: "FRAME_CORRUPT", facts: { field: "block" } });
  expect(fetcher.came.length).toBeLessThan(pages.length);
  // Nobody serves it any more; the next link brings what is waited for.
  faulting.tamper = () => {};
  await faulting.reconnect();
  await fetcher.ended;
  expect(fetcher.came).toEqual(pages);
  faulting.expectExact(pages);
});

test("a page that trickles in keeps a vCPU no longer than a channel may stall", async () => {
  const limitMs = 500;
  const faulting = await Faulting.start(seed, pairs, limitMs);
  const pages = distant(100);
  const fetcher = new Fetcher(faulting, 1, pages);
  await faulting.until(() => faulting.fetches >= FETCHES);
  faulting.trickles = true; // A page takes four seconds and more, and never stands still.
  await faulting.until(() => faulting.failures.length > 0);
  expect(faulting.failures[0]).toMatchObject({ code: "CHANNEL_STALLED", facts: { limitMs } });
  faulting.trickles = false;
  await faulting.reconnect();
  await fetcher.ended;
  expect(fetcher.came).toEqual(pages);
});

test("a lane whose server was ended fails, and may be closed; one that serves keeps it open", async () => {
  const faulting = await Faulting.start(seed, pairs);
  faulting.isHeld = true; // So it waits, and lives.
  const fetcher = new Fetcher(faulting, 1, [3]);
  await faulting.until(() => faulting.hasRequested(3) && fetcher.thread !== 0);
  const state = stateOf(faulting, 1);
  await faulting.until(() => takeLane(state, fetcher.thread));
  expect(closeLane(state)).toBe(false);
  await fetcher.worker.terminate();
  await faulting.until(() => faulting.failures.length > 0);
  expect(faulting.failures[0]).toMatchObject({ code: "WORKER_DIED" });
  expect(closeLane(state)).toBe(true);
});
