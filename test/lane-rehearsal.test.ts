import { readdirSync } from "node:fs";
import { queryObjects } from "node:v8";
import { expect, onTestFinished, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { GIB } from "../base/units.ts";
import * as connections from "../channels/connection.ts";
import { openOwnPair } from "../channels/own-pair.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { createControl, stopWorkers } from "../workers/control.ts";
import { createFaultDoor } from "../workers/fault-door.ts";
import { createGate } from "../workers/gate.ts";
import { LaneReceiver } from "../workers/lane-receiver.ts";
import { type Part, rehearse } from "../workers/lane-rehearsal.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "../workers/lane-words.ts";
import { createLatencies } from "../workers/latencies.ts";
import { smallShape } from "./fixtures/memory-guest-shapes.ts";
import { migratePair } from "./harness/pair.ts";

vi.mock(import("../channels/connection.ts"), { spy: true });
vi.mock(import("../workers/lane-rehearsal.ts"), { spy: true });

const PARTS: readonly Part[] = ["lane", "vcpu"];
/** 8 blocks of 32 pages in each of 4 acts, twenty times. */
const ALL_PAGES = 20_480;
const TURN_PAGES = 4;

function openFiles(): number {
  return readdirSync("/proc/self/fd").length;
}

test("a rehearsal brings every page, whoever's part it is, and leaves nothing open", async () => {
  const before = openFiles();
  for (const part of PARTS) {
    expect(await rehearse(part, () => false), part).toBe(ALL_PAGES);
    expect(openFiles(), part).toBe(before);
  }
});

test("pages behind 2 GiB are rehearsed, too, and where nobody may have so much all of them are near", async () => {
  const asked: number[] = [];
  const Real = SharedArrayBuffer;
  onTestFinished(() => void vi.unstubAllGlobals());
  vi.stubGlobal(
    "SharedArrayBuffer",
    class extends Real {
      constructor(bytes: number) {
        asked.push(bytes);
        if (bytes >= 2 * GIB && asked.filter((each) => each >= 2 * GIB).length > 2) {
          throw new RangeError("Array buffer allocation failed");
        }
        super(bytes);
      }
    },
  );
  const large = (): number => asked.filter((bytes) => bytes >= 2 * GIB).length;
  expect(await rehearse("lane", () => false)).toBe(ALL_PAGES);
  expect(large()).toBe(2);
  expect(await rehearse("lane", () => false)).toBe(ALL_PAGES);
  expect(large()).toBe(3);
});

test("a thread keeps what it rehearsed with last, for V8 keeps its code no longer, and nothing else", async () => {
  for (const part of PARTS) {
    await rehearse(part, () => false);
    // Collects garbage first.
    expect(queryObjects(LaneReceiver, { format: "count" }), part).toBe(1);
  }
});

test("a rehearsal ends at its next turn when it is over", async () => {
  for (const part of PARTS) {
    // Asked before each act, too.
    let asked = 0;
    const pages = await rehearse(part, () => ++asked > 1 + 3);
    expect(asked).toBe(1 + 4 + 1);
    // What comes unasked comes besides.
    expect(pages).toBeGreaterThanOrEqual(3 * TURN_PAGES);
    expect(pages).toBeLessThan(ALL_PAGES / 2);
  }
});

test("where nobody may listen nothing is rehearsed, and nothing left open", async () => {
  const before = openFiles();
  vi.mocked(connections.listen).mockRejectedValueOnce(new Error("not here"));
  await expect(rehearse("lane", () => false)).rejects.toThrow("not here");
  expect(openFiles()).toBe(before);
});

test("somebody else who comes first is not taken for the other end", async () => {
  const before = openFiles();
  const strangers: connections.Connection[] = [];
  onTestFinished(() => {
    for (const stranger of strangers) stranger.close();
  });
  const { connector } = await vi.importActual<typeof connections>("../channels/connection.ts");
  vi.mocked(connections.connector).mockImplementationOnce((address) => {
    const dialer = connector(address);
    return {
      async connect(channel, limitMs) {
        strangers.push(await dialer.connect(channel, limitMs));
        return await dialer.connect(channel, limitMs);
      },
      close: () => dialer.close(),
    };
  });
  await expect(openOwnPair(5000)).rejects.toThrow("somebody else came first");
  expect(openFiles()).toBe(before + strangers.length);
});

/** A lane's thread, here: what it was told to rehearse until, and whether it does. */
async function laneThread() {
  vi.resetModules();
  const { rehearse } = await import("../workers/lane-rehearsal.ts");
  const { default: work } = await import("../workers/lane-worker.ts");
  const control = createControl(1);
  const words = createLaneWords();
  const send = {
    control,
    blocks: [],
    hasChecksum: false,
    channelTimeoutMs: 0,
    fenceTimeoutMs: 0,
    cacheBytes: 0,
    xbzrle: false,
    channels: 1,
  };
  const setup = { side: "source", send, words, served: createLatencies() } as const;
  await work({ kind: "begin", setup });
  return { work, control, words, setup, rehearse: vi.mocked(rehearse).mockReset() };
}

test("a lane's thread rehearses once, until its guest goes over or its migration ends", async () => {
  for (const end of ["over", "ended"] as const) {
    const { work, control, words, rehearse } = await laneThread();
    rehearse.mockResolvedValue(1);
    await work({ kind: "rehearse" });
    const isOver = must(rehearse.mock.lastCall?.[1], "it was told when to end");
    expect(isOver()).toBe(false);
    if (end === "over") tellLanes(words, OPEN);
    else stopWorkers(control);
    expect(isOver(), end).toBe(true);
    await work({ kind: "rehearse" });
    await work({ kind: "ready", wanted: new Int32Array(1) });
    expect(rehearse).toHaveBeenCalledTimes(1);
  }
});

test("a lane's thread does nothing else until its rehearsal is over", async () => {
  for (const task of [
    {
      kind: "serve",
      place: { channel: 1, readFd: -1, writeFd: -1, readSequence: 0, writeSequence: 0 },
    },
    { kind: "forget" },
  ] as const) {
    const { work, words, rehearse } = await laneThread();
    const rehearsing = Promise.withResolvers<number>();
    rehearse.mockReturnValueOnce(rehearsing.promise);
    tellLanes(words, FINISH);
    void work({ kind: "rehearse" });
    let hasEnded = false;
    const ended = Promise.allSettled([work(task)]).then(() => {
      hasEnded = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(hasEnded, task.kind).toBe(false);
    rehearsing.resolve(1);
    await ended;
  }
});

test("a lane's thread that is made ready rehearses until a guest goes over, and serves also where it cannot", async () => {
  const { work, words, setup, rehearse } = await laneThread();
  await work({ kind: "forget" });
  rehearse.mockRejectedValueOnce(new Error("not here"));
  expect(await work({ kind: "ready", wanted: new Int32Array(1) })).toEqual({
    state: "done",
    pages: 0,
  });
  expect(rehearse.mock.lastCall?.[0]).toBe("lane");
  const isOver = must(rehearse.mock.lastCall?.[1], "it was told when to end");
  expect(isOver(), "nobody has it").toBe(false);
  await work({ kind: "begin", setup });
  expect(isOver(), "its guest runs at the source").toBe(false);
  tellLanes(words, OPEN);
  expect(isOver()).toBe(true);
});

test("a vCPU's thread rehearses until its guest comes, whether it can or not", async () => {
  const door = createFaultDoor([], createGate());
  for (const isAble of [true, false]) {
    vi.resetModules();
    const { openFaults, prepareFaults } = await import("../engine/faults.ts");
    const rehearsing = vi
      .mocked((await import("../workers/lane-rehearsal.ts")).rehearse)
      .mockReset();
    rehearsing.mockImplementationOnce(async (_part, isOver) => {
      while (!isOver()) await new Promise((resolve) => setImmediate(resolve));
      if (!isAble) throw new Error("not here");
      return 1;
    });
    const prepared = prepareFaults();
    await vi.waitUntil(() => rehearsing.mock.calls.length === 1);
    const own = await openFaults(door);
    await prepared;
    await prepareFaults();
    own.close();
    expect(rehearsing.mock.calls.map(([part]) => part)).toEqual(["vcpu"]);
  }
});

test("a host is told at once whether its guest may go over before its memory", async () => {
  for (const [postcopy, mayFault] of [
    ["never", false],
    ["not-converging", true],
  ] as const) {
    const destination = new MemoryGuestDestination();
    onTestFinished(() => destination.discard());
    const prepare = vi.spyOn(destination, "prepare");
    const source = await MemoryGuest.create(smallShape(1));
    onTestFinished(() => source.stop());
    const outcome = await migratePair({ source, destination, out: { postcopy } });
    expect(outcome.source.failure).toBeNull();
    expect(prepare.mock.lastCall?.[2]).toEqual({ mayFault });
  }
});
