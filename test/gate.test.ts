import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { getPriority, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, onTestFinished, test, vi } from "vitest";
import { loadChecksum } from "../channels/checksum.ts";
import { openInbox } from "../channels/inbox.ts";
import { type Control, CounterRow, createControl, stopOf } from "../workers/control.ts";
import { FrameWriter } from "../workers/frame-writer.ts";
import { beginPostcopy, closeGate, faultsSoFar, openGate, passGate } from "../workers/gate.ts";
import { PageReceiver, RECEIVED_BYTES_MAX } from "../workers/page-receiver.ts";
import { PAGES_AT, Workbench } from "../workers/workbench.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { placeOf, receiveBlockOf, receiveSetupOf } from "./fixtures/wire-pipeline.ts";
import { bodyOf, ENCODING, frameBytes, KIND, u8, u16, u32 } from "./wire-peer.ts";

// Threads of their own tell how they stand; this one goes on with others' tests.
vi.mock("node:os", async (original) => ({ ...(await original()), setPriority: () => {} }));

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

/** How long each wait for this gate is to last, at most. */
function waitsFor(control: Control): (number | undefined)[] {
  const limits: (number | undefined)[] = [];
  const wait = vi.spyOn(Atomics, "wait").mockImplementation((words, _index, _value, limitMs) => {
    if (Object.is(words, control.gate)) limits.push(limitMs);
    return "timed-out";
  });
  onTestFinished(() => wait.mockRestore());
  return limits;
}

test("a bulk thread waits at a gate that is shut, for a millisecond at most, and at no other", () => {
  const control = createControl(1);
  beginPostcopy(control);
  const limits = waitsFor(control);
  passGate(control);
  expect(limits).toEqual([]);
  closeGate(control);
  passGate(control);
  expect(limits).toEqual([1]);
  openGate(control);
  passGate(control);
  expect(limits).toEqual([1]);
});

test("who writes frames waits at the gate before each, but for a lane", () => {
  const control = createControl(1);
  beginPostcopy(control);
  closeGate(control);
  const fd = openSync("/dev/null", "w");
  onTestFinished(() => closeSync(fd));
  const writerOf = (isLane: boolean): FrameWriter =>
    new FrameWriter(new Workbench(), {
      output: { fd, channel: 1, stop: stopOf(control, 1), limitMs: 1000 },
      checksum: null,
      control,
      counters: new CounterRow(control, 0),
      sequence: 1,
      isLane,
    });
  const limits = waitsFor(control);
  writerOf(true).write("end", PAGES_AT, PAGES_AT);
  expect(limits).toEqual([]);
  const bulk = writerOf(false);
  bulk.write("end", PAGES_AT, PAGES_AT);
  bulk.write("end", PAGES_AT, PAGES_AT);
  expect(limits).toEqual([1, 1]);
});

test("who receives pages waits at the gate before each frame of them, but for a lane", async () => {
  const folder = mkdtempSync(join(tmpdir(), "multifd-gate-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const run = [u32(0), u16(1), u8(ENCODING.zero), u8(0), u32(0)];
  const body = bodyOf(u32(0), u16(1), u8(0), u8(0), ...run);
  const frames = [
    { kind: KIND.pages, sequence: 1, body },
    { kind: KIND.pages, sequence: 2, body },
    { kind: KIND.end, sequence: 3, body: bodyOf() },
  ];
  const path = join(folder, "stream");
  writeFileSync(path, Buffer.concat(frames.map((f) => frameBytes({ ...f, hasChecksum: false }))));
  const sizeBytes = 64 * 4096;
  const announced = { name: "ram", sizeBytes, pageBytes: 4096, isPristine: true };
  const checksum = await loadChecksum();
  const openReceiver = (): { receiver: PageReceiver; limits: (number | undefined)[] } => {
    const fd = openSync(path, "r");
    const block = receiveBlockOf({ ...announced, target: sharedMemory(sizeBytes) });
    const setup = receiveSetupOf([block], false);
    const input = { fd, channel: 1, stop: new Int32Array(1), limitMs: 1000 };
    const inbox = openInbox(input, RECEIVED_BYTES_MAX);
    const receiver = new PageReceiver(setup, placeOf(fd), checksum, inbox);
    onTestFinished(() => {
      receiver.close();
      closeSync(fd);
    });
    beginPostcopy(setup.control);
    closeGate(setup.control);
    return { receiver, limits: waitsFor(setup.control) };
  };
  const bulk = openReceiver();
  bulk.receiver.receive();
  expect(bulk.limits).toEqual([1, 1]);
  const lane = openReceiver();
  while (lane.receiver.pollAll() !== "end");
  expect(lane.limits).toEqual([]);
});

test("a lane comes before other threads where the system allows it, and bulk threads behind all", async () => {
  const before = getPriority(0);
  expect(await niceOf("lane")).toBe(await niceOf(-15));
  expect(await niceOf("bulk")).toBe(await niceOf(10));
  expect(await niceOf("bulk")).toBeGreaterThan(await niceOf("lane"));
  // It is the thread's own, and no matter to the process.
  expect(getPriority(0)).toBe(before);
});
