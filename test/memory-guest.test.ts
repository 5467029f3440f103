import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { Deadline } from "../base/clock.ts";
import { KIB, MIB } from "../base/units.ts";
import type { DirtyLog } from "../engine/dirty-log.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { GuestShape, Pattern } from "../hosts/memory-guest/shape.ts";
import { startVcpuThreads } from "../hosts/memory-guest/vcpu-thread.ts";
import { lowestBit, takeWord } from "../workers/dirty-words.ts";
import type { Carelessness } from "./fixtures/memory-guest-process.ts";
import {
  mixedShape,
  PAGE_BYTES,
  PATTERNS,
  smallShape,
  UNLIMITED_RATE,
  untilWritten,
} from "./fixtures/memory-guest-shapes.ts";
import { vcpuThreadCount } from "./fixtures/memory-guest-threads.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

async function guestOf(shape: GuestShape): Promise<MemoryGuest> {
  const guest = await MemoryGuest.create(shape);
  onTestFinished(() => guest.stop());
  return guest;
}

function memoryOf(guest: MemoryGuest): Uint8Array[] {
  return guest.blocks.map(({ place }) => new Uint8Array(place.buffer));
}

function copiesOf(guest: MemoryGuest): Uint8Array[] {
  return memoryOf(guest).map((bytes) => Uint8Array.from(bytes));
}

/** Compared by `expect`, a megabyte takes a second. */
function areEqual(some: readonly Uint8Array[], others: readonly Uint8Array[]): boolean {
  return some.every((bytes, index) => Buffer.compare(bytes, must(others[index], "a pair")) === 0);
}

/** Takes what the logs name, then copies those pages, as a migration does. Returns the pages. */
function applyLogs(logs: readonly DirtyLog[], from: Uint8Array[], to: Uint8Array[]): number {
  let pages = 0;
  for (const [index, log] of logs.entries()) {
    const source = must(from[index], "a log has its block");
    const target = must(to[index], "a block has its copy");
    for (let word = 0; word < log.words.length; word += 1) {
      for (let bits = takeWord(log, word); bits !== 0; bits &= bits - 1) {
        const at = (word * 32 + lowestBit(bits)) * log.pageBytes;
        target.set(source.subarray(at, at + log.pageBytes), at);
        pages += 1;
      }
    }
  }
  return pages;
}

test("a new guest is paused, not tracked, not throttled, and intact", async () => {
  const guest = await guestOf(mixedShape(1));
  const { running, tracking, throttlePercent, writtenPages, threadCount } = guest;
  expect({ running, tracking, throttlePercent, writtenPages, threadCount }).toEqual({
    running: false,
    tracking: false,
    throttlePercent: 0,
    writtenPages: 0,
    threadCount: 4,
  });
  expect(await guest.verify()).toEqual([]);
});

test("a shape that cannot be is refused before anything starts", async () => {
  const before = vcpuThreadCount();
  await expect(MemoryGuest.create({ ...smallShape(1), seed: -1 })).rejects.toThrow(RangeError);
  const block = { name: "ram", sizeBytes: 2 ** 52, pageBytes: PAGE_BYTES };
  const huge = MemoryGuest.create({ ...smallShape(1), blocks: [block], vcpus: [] });
  await expect(huge).rejects.toThrow(/^Cannot allocate 4096 TiB for block "ram"/);
  expect(vcpuThreadCount()).toBe(before);
});

for (const pattern of PATTERNS) {
  for (const changedBytes of [8, 100, PAGE_BYTES]) {
    test(`a guest that wrote pages in pattern ${pattern}, ${changedBytes} bytes each, is intact (SEED=${seed})`, async () => {
      const guest = await guestOf(smallShape(seed, { pattern, changedBytes }));
      const before = copiesOf(guest);
      await guest.run();
      await untilWritten(guest, 2000);
      await guest.pause();
      expect(await guest.verify()).toEqual([]);
      expect(areEqual(memoryOf(guest), before)).toBe(false);
    });
  }
}

test(`several vCPUs over blocks with small and huge pages leave an intact guest (SEED=${seed})`, async () => {
  const guest = await guestOf(mixedShape(seed));
  for (let run = 0; run < 5; run += 1) {
    await guest.run();
    await untilWritten(guest, 1000);
    await guest.pause();
    expect(await guest.verify()).toEqual([]);
  }
});

/** Slow enough that a page is not written again soon: a write that is missed stays missed. */
function slowShape(pattern: Pattern, changedBytes: number): GuestShape {
  return {
    ...smallShape(seed, { pattern, changedBytes, pageCount: 4000, rateBytesPerSecond: 80 * MIB }),
    blocks: [{ name: "ram", sizeBytes: 16 * MIB, pageBytes: PAGE_BYTES }],
  };
}

for (const shape of [
  ...PATTERNS.flatMap((pattern) => [slowShape(pattern, 100), slowShape(pattern, PAGE_BYTES)]),
  mixedShape(seed),
]) {
  const name = shape.vcpus.map(({ pattern, changedBytes }) => `${pattern} ${changedBytes}`).join();
  test(`the dirty log names every write to those who copy meanwhile: ${name} (SEED=${seed})`, async () => {
    const guest = await guestOf(shape);
    await guest.run();
    for (let migration = 0; migration < 10; migration += 1) {
      await untilWritten(guest, 10);
      const logs = await guest.startDirtyLog();
      const copies = copiesOf(guest);
      const target = guest.writtenPages + 1000;
      const deadline = new Deadline(30_000);
      while (guest.writtenPages < target && !deadline.passed) {
        applyLogs(logs, memoryOf(guest), copies);
      }
      await untilWritten(guest, 10);
      await guest.pause();
      expect(applyLogs(logs, memoryOf(guest), copies)).toBeGreaterThan(0);
      expect(areEqual(copies, memoryOf(guest))).toBe(true);
      await guest.stopDirtyLog();
      await guest.resume();
    }
  });
}

test("the dirty log says nothing of what was written before and after, or by nobody", async () => {
  const guest = await guestOf(smallShape(1));
  await guest.run();
  await untilWritten(guest, 300);
  await guest.pause();
  const logs = await guest.startDirtyLog();
  expect(guest.tracking).toBe(true);
  await guest.stopDirtyLog();
  expect(guest.tracking).toBe(false);
  await guest.resume();
  await untilWritten(guest, 300);
  const words = logs.flatMap((log) => [...log.words, ...log.summary]);
  expect(new Set(words)).toEqual(new Set([0]));
});

test("a slow vCPU marks only what it wrote", async () => {
  const guest = await guestOf(smallShape(1, { rateBytesPerSecond: 10 * PAGE_BYTES }));
  const logs = await guest.startDirtyLog();
  await guest.run();
  await untilWritten(guest, 3);
  await guest.pause();
  const { writtenPages } = guest;
  expect(writtenPages).toBeLessThan(250); // No page twice.
  expect(applyLogs(logs, memoryOf(guest), copiesOf(guest))).toBe(writtenPages);
});

test("a paused guest writes nothing", async () => {
  const guest = await guestOf(smallShape(1));
  await guest.run();
  await untilWritten(guest, 100);
  await guest.pause();
  const [copies, { writtenPages }] = [copiesOf(guest), guest];
  // Each of these is an order that the vCPU's thread has answered.
  for (let order = 0; order < 20; order += 1) {
    await guest.startDirtyLog();
    await guest.stopDirtyLog();
  }
  expect(guest.writtenPages).toBe(writtenPages);
  expect(areEqual(memoryOf(guest), copies)).toBe(true);
});

test("resume lets the guest run on if it ran, however often both are called", async () => {
  const guest = await guestOf(smallShape(1));
  await guest.pause();
  await guest.resume();
  expect(guest.running).toBe(false);
  await guest.run();
  await guest.resume();
  expect(guest.running).toBe(true);
  await guest.pause();
  await guest.pause();
  expect(guest.running).toBe(false);
  await guest.resume();
  await guest.resume();
  expect(guest.running).toBe(true);
  await untilWritten(guest, 100);
});

test(`calls that are not waited for take effect in order (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  const guest = await guestOf(mixedShape(seed));
  for (let round = 0; round < 30; round += 1) {
    await Promise.all(
      Array.from({ length: 10 }, () => {
        const calls = [
          () => guest.pause(),
          () => guest.resume(),
          () => guest.run(),
          () => guest.throttle(random.below(100)),
          () => guest.startDirtyLog(),
          () => guest.stopDirtyLog(),
        ];
        return must(calls[random.below(calls.length)], "a call is chosen")();
      }),
    );
    const [, , problems] = await Promise.all([guest.run(), guest.pause(), guest.verify()]);
    expect(problems).toEqual([]);
  }
});

test("a throttle is taken and lifted, and the guest still runs under it", async () => {
  const guest = await guestOf(smallShape(1));
  await guest.run();
  await guest.throttle(99);
  expect(guest.throttlePercent).toBe(99);
  await untilWritten(guest, 100);
  await guest.throttle(0);
  expect(guest.throttlePercent).toBe(0);
  await untilWritten(guest, 100);
});

for (const percent of [-1, 100, 0.5, NaN]) {
  test(`a throttle of ${percent} % is a RangeError`, async () => {
    const guest = await guestOf({ ...smallShape(1), vcpus: [] });
    await expect(guest.throttle(percent)).rejects.toThrow(RangeError);
    expect(guest.throttlePercent).toBe(0);
  });
}

test("a running guest can be neither saved nor verified", async () => {
  const guest = await guestOf(smallShape(1));
  await guest.run();
  await expect(guest.saveDevices()).rejects.toThrow("Cannot save devices: the guest is running");
  await expect(guest.verify()).rejects.toThrow("Cannot verify: the guest is running");
});

test("the expected size of the devices is about their size", async () => {
  const guest = await guestOf(mixedShape(1));
  const sizes = (await guest.saveDevices()).map(({ bytes }) => bytes.length);
  expect(guest.deviceBytes).toBe(sizes.reduce((sum, bytes) => sum + bytes, 0));
});

/** A guest that went round several times, and how it was a round or more before. */
async function guestWithPast() {
  const guest = await guestOf(smallShape(9));
  await guest.run();
  await untilWritten(guest, 1000);
  await guest.pause();
  const [past] = copiesOf(guest);
  await guest.resume();
  await untilWritten(guest, 1000);
  await guest.pause();
  const [memory] = memoryOf(guest);
  return { guest, past: must(past, "one block"), memory: must(memory, "one block") };
}

test("a lost page is found, also after the guest went on", async () => {
  const { guest, past, memory } = await guestWithPast();
  const at = 10 * PAGE_BYTES;
  memory.set(past.subarray(at, at + PAGE_BYTES), at);
  const lost = /^block "ram" page 10 is lost: it holds write \d+, wanted \d+$/;
  expect(await guest.verify()).toEqual([expect.stringMatching(lost)]);
  await guest.resume();
  await untilWritten(guest, 1000);
  await guest.pause();
  expect(await guest.verify()).toEqual([expect.stringMatching(lost)]);
});

test("a torn page is found, whichever part of it is old", async () => {
  const { guest, past, memory } = await guestWithPast();
  const half = PAGE_BYTES / 2;
  memory.set(past.subarray(20 * PAGE_BYTES, 20 * PAGE_BYTES + half), 20 * PAGE_BYTES);
  memory.set(past.subarray(31 * PAGE_BYTES - half, 31 * PAGE_BYTES), 31 * PAGE_BYTES - half);
  const middle = 40 * PAGE_BYTES + 4;
  memory.set(past.subarray(middle, middle + PAGE_BYTES - 8), middle);
  expect(await guest.verify()).toEqual([
    expect.stringMatching(/page 20 is torn: it begins with write \d+ and ends with write \d+$/),
    expect.stringMatching(/page 30 is torn/),
    expect.stringMatching(/page 40 is corrupt: byte 4 is 0x..?, wanted 0x..?$/),
  ]);
});

test("a page that is ahead of its vCPU is found", async () => {
  const { guest, memory } = await guestWithPast();
  const counters = new Uint32Array(memory.buffer, 50 * PAGE_BYTES, PAGE_BYTES / 4);
  counters[0] = counters[PAGE_BYTES / 4 - 1] = 4_000_000;
  expect(await guest.verify()).toEqual([
    expect.stringMatching(/page 50 is ahead: it holds write 4000000, wanted \d+$/),
  ]);
});

test("one wrong bit anywhere is found, with its place", async () => {
  const { guest, memory } = await guestWithPast();
  for (const byte of [0, 1, 4095, 3 * PAGE_BYTES + 777, 253 * PAGE_BYTES, MIB - 1]) {
    memory[byte] = (memory[byte] ?? 0) ^ 0x40;
    const [page, offset] = [Math.floor(byte / PAGE_BYTES), byte % PAGE_BYTES];
    expect(await guest.verify()).toEqual([
      expect.stringContaining(`block "ram" page ${page} is corrupt: byte ${offset} is`),
    ]);
    memory[byte] = (memory[byte] ?? 0) ^ 0x40;
  }
  expect(await guest.verify()).toEqual([]);
});

test("a huge page is named once, and many damaged pages are counted", async () => {
  const guest = await guestOf({
    ...smallShape(1),
    blocks: [
      { name: "huge", sizeBytes: MIB, pageBytes: 128 * KIB },
      { name: "ram", sizeBytes: MIB, pageBytes: PAGE_BYTES },
    ],
  });
  const [huge, ram] = memoryOf(guest);
  must(huge, "the first block").fill(0xee, 128 * KIB, 3 * 128 * KIB);
  must(ram, "the second block").fill(0xee, 0, 50 * PAGE_BYTES);
  const problems = await guest.verify();
  expect(problems.slice(0, 3)).toEqual([
    expect.stringContaining('block "huge" page 1 is corrupt: byte 0 is 0xee, wanted '),
    expect.stringContaining('block "huge" page 2 is corrupt: byte 0 is 0xee, wanted '),
    expect.stringContaining('block "ram" page 0 is corrupt'),
  ]);
  expect(problems.length).toBe(11);
  expect(problems.at(-1)).toBe("and 42 more pages");
});

test("stop leaves no thread, memory that can be verified, and calls that say so", async () => {
  const before = vcpuThreadCount();
  const guest = await guestOf(mixedShape(1));
  expect(vcpuThreadCount()).toBe(before + 4);
  await guest.run();
  await guest.startDirtyLog();
  await untilWritten(guest, 100);
  await Promise.all([guest.stop(), guest.stop()]);
  await guest.stop();
  expect([guest.running, guest.tracking, guest.threadCount]).toEqual([false, false, 0]);
  expect(vcpuThreadCount()).toBe(before);
  expect(await guest.verify()).toEqual([]);
  await guest.pause();
  await guest.resume();
  await guest.stopDirtyLog();
  await expect(guest.run()).rejects.toThrow("Cannot run: the guest was stopped");
  await expect(guest.startDirtyLog()).rejects.toThrow("the guest was stopped");
});

test("a vCPU that dies is reported by every call that needs it, and stop still ends the others", async () => {
  const before = vcpuThreadCount();
  const shape = {
    ...smallShape(1),
    vcpus: [...smallShape(1).vcpus, { ...smallShape(1).vcpus[0], firstPage: 253, pageCount: 3 }],
  } as GuestShape;
  // The last vCPU's pages are not there: its first mark breaks an invariant.
  const sizeBytes = 253 * PAGE_BYTES;
  const buffer = new SharedArrayBuffer(sizeBytes);
  const state = { turn: 0, sweeps: [{ position: 0, round: 0 }] };
  const guest = await MemoryGuest.over({
    shape,
    states: [state, state],
    memory: [{ name: "ram", sizeBytes, pageBytes: PAGE_BYTES, place: { kind: "shared", buffer } }],
    threads: await startVcpuThreads(2, { mayFault: false }),
  });
  onTestFinished(() => guest.stop());
  await guest.startDirtyLog();
  await guest.run();
  await expect.poll(() => guest.threadCount, { timeout: 20_000 }).toBe(1);
  const death = "a marked page lies in its block";
  await expect(guest.pause()).rejects.toThrow(`Cannot steer vcpu-1: InvariantError: ${death}`);
  expect(await guest.verify()).toEqual([`vcpu-1 died: InvariantError: ${death}`]);
  await expect(guest.saveDevices()).rejects.toThrow("a vCPU did not answer");
  await guest.stop();
  expect(vcpuThreadCount()).toBe(before);
});

test("an unlimited vCPU is paced by nothing but the machine", async () => {
  const guest = await guestOf(smallShape(1, { rateBytesPerSecond: UNLIMITED_RATE }));
  await guest.run();
  await untilWritten(guest, 100_000);
});

function carelessProcess(how: Carelessness): ChildProcess {
  const file = new URL("./fixtures/memory-guest-process.ts", import.meta.url).pathname;
  const child = spawn(process.execPath, [file, how], { stdio: ["ignore", "pipe", "ignore"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

for (const [how, status] of [
  ["paused", 0],
  ["exits", 0],
  ["throws", 1],
  ["inside a thread", 0],
] as const) {
  test(`a process ends though it forgot its guest: ${how}`, async () => {
    expect(await once(carelessProcess(how), "exit")).toEqual([status, null]);
  });
}

test("a running guest keeps its process alive until a signal", async () => {
  const child = carelessProcess("running");
  await once(must(child.stdout, "it has an output"), "data");
  expect(child.exitCode).toBe(null);
  child.kill("SIGTERM");
  expect(await once(child, "exit")).toEqual([null, "SIGTERM"]);
});
