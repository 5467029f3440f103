import { expect, onTestFinished, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import {
  decodeDiscard,
  decodeLanes,
  decodeRequest,
  encodeDiscard,
  encodeLanes,
} from "../channels/messages.ts";
import { checkPostcopy } from "../engine/agreement.ts";
import { migrateIn } from "../engine/destination.ts";
import type { DestinationHost } from "../engine/host.ts";
import { resolveParameters } from "../engine/parameters.ts";
import { goesOver } from "../engine/postcopy-policy.ts";
import { migrateOut } from "../engine/source.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { CounterRow, createControl } from "../workers/control.ts";
import {
  ARMED,
  awaitPage,
  createFaultDoor,
  DROPPED,
  discardPages,
  faultTimes,
  isPresent,
  MISSING,
  nextMissing,
  takeQuestion,
} from "../workers/fault-door.ts";
import { createGate } from "../workers/gate.ts";
import { GuestWriter, type RunDeltas } from "../workers/guest-writer.ts";
import { openRam } from "../workers/ram.ts";
import { Workbench } from "../workers/workbench.ts";
import { smallShape, untilWritten } from "./fixtures/memory-guest-shapes.ts";
import { encodedRequest } from "./fixtures/wire-messages.ts";
import { outcomeOf } from "./harness/pair.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const BLOCKS = [{ pageCount: 40 }];

test("what is missing is named within its block", () => {
  const bits = new Int32Array([-1, 0xff]);
  expect(decodeDiscard(encodeDiscard({ block: 0, firstPage: 0, bits }), 0, BLOCKS).bits).toEqual(
    bits,
  );
  for (const wrong of [
    { block: 1, firstPage: 0, bits: new Int32Array(1) },
    { block: 0, firstPage: 8, bits: new Int32Array(1) },
    { block: 0, firstPage: 64, bits: new Int32Array(1) },
    { block: 0, firstPage: 0, bits: new Int32Array([0, 0x100]) },
    { block: 0, firstPage: 0, bits: new Int32Array(3) },
    { block: 0, firstPage: 0, bits: new Int32Array(0) },
  ]) {
    expect(() => decodeDiscard(encodeDiscard(wrong), 0, BLOCKS)).toThrow(
      expect.objectContaining({ code: "FRAME_CORRUPT" }),
    );
  }
});

test("a request is for a page that exists, in order", () => {
  const wanted = { blocks: BLOCKS, number: 7 };
  const right = { block: 0, page: 39, number: 7 };
  expect(decodeRequest(encodedRequest(right), 5, wanted)).toEqual(right);
  for (const wrong of [{ block: 1 }, { page: 40 }, { page: 2 ** 32 - 1 }, { number: 8 }]) {
    expect(() => decodeRequest(encodedRequest({ ...right, ...wrong }), 5, wanted)).toThrow(
      expect.objectContaining({ code: "FRAME_CORRUPT" }),
    );
  }
  for (const lanes of [0, 5, 65_535]) {
    expect(() => decodeLanes(encodeLanes(lanes), 0)).toThrow();
  }
});

const PAGE_BYTES = 4 * KIB;
const PAGES = 64;

/** A guest in post-copy that misses the pages of `bits`; all of its bytes are 7. */
function missing(bits: number) {
  const door = createFaultDoor(
    [{ name: "ram", pageBytes: PAGE_BYTES, pageCount: PAGES }],
    createGate(),
  );
  discardPages(door, 0, 0, bits);
  Atomics.store(door.words, ARMED, 1);
  const buffer = new SharedArrayBuffer(PAGES * PAGE_BYTES);
  const memory = new Uint8Array(buffer).fill(7);
  const region = {
    name: "ram",
    sizeBytes: memory.length,
    place: { kind: "shared", buffer },
  } as const;
  const received = new Int32Array(2);
  const generations = new Uint32Array(PAGES);
  const writerOf = (channel: number): GuestWriter =>
    new GuestWriter(
      {
        ram: openRam(region, "write"),
        pageBytes: PAGE_BYTES,
        pageCount: PAGES,
        isPristine: false,
        received,
        generations,
        door: { door, block: 0 },
        channel,
      },
      new CounterRow(createControl(channel), channel - 1),
      new Workbench(),
    );
  const firstBytes = (pages: number): number[] =>
    Array.from({ length: pages }, (_, page) => memory[page * PAGE_BYTES] as number);
  return { door, memory, generations, writerOf, firstBytes };
}

/** Of pages whose first three bytes become 9: no byte is skipped, three follow. */
const NINES = [0, 3, 9, 9, 9];

function ninesOver(pages: number, base: number): RunDeltas {
  return {
    generation: () => base,
    length: () => NINES.length,
    units: pages,
    deltas: new Uint8Array(Array.from({ length: pages }, () => NINES).flat()),
  };
}

test("a delta of a page that a lane has brought is dropped; of one that is missing it must fit", () => {
  const { door, memory, generations, writerOf, firstBytes } = missing(0b111);
  generations.fill(100);
  const [bulk, lane] = [writerOf(1), writerOf(3)];
  lane.generation = 300;
  lane.write(1, 1, new Uint8Array(PAGE_BYTES).fill(2));
  expect(generations[1]).toBe(300);
  bulk.applyDeltas({ firstPage: 0, pages: 2 }, ninesOver(2, 100));
  expect(firstBytes(4)).toEqual([9, 2, 7, 7]);
  expect([...memory.subarray(0, 5)]).toEqual([9, 9, 9, 7, 7]);
  expect(Atomics.load(door.words, DROPPED)).toBe(1);
  expect(() => bulk.applyDeltas({ firstPage: 1, pages: 2 }, ninesOver(2, 99))).toThrow(
    expect.objectContaining({ code: "FRAME_CORRUPT" }),
  );
  expect(firstBytes(4)).toEqual([9, 2, 7, 7]);
  expect(Atomics.load(door.words, MISSING)).toBe(1);
});

test("a page is placed once, and what comes again changes nothing", () => {
  const { door, memory, writerOf, firstBytes } = missing(0b1110);
  expect(Atomics.load(door.words, MISSING)).toBe(3);
  const writer = writerOf(1);
  writer.write(0, 4, new Uint8Array(4 * PAGE_BYTES).fill(1));
  expect(firstBytes(5)).toEqual([7, 1, 1, 1, 7]);
  expect(Atomics.load(door.words, MISSING)).toBe(0);
  expect(nextMissing(door.blocks[0] as never, 0)).toBe(-1);
  writer.write(1, 2, new Uint8Array(2 * PAGE_BYTES).fill(2));
  writer.clear(0, PAGES);
  expect(writer.view(1, 1)).toBe(null);
  writer.write(1, 1, new Uint8Array(PAGE_BYTES).fill(3));
  expect(new Set(memory.subarray(PAGE_BYTES, 4 * PAGE_BYTES))).toEqual(new Set([1]));
  expect(new Set(memory.subarray(4 * PAGE_BYTES))).toEqual(new Set([7]));
  expect(Atomics.load(door.words, DROPPED)).toBeGreaterThan(60);
});

test("a page that a broken channel was about to bring is placed by whoever comes with it", () => {
  const { door, writerOf, firstBytes } = missing(0b1111);
  const [bulk, lane, other] = [writerOf(1), writerOf(2), writerOf(3)];
  // The frame's table is there, its bytes are not, and never will be.
  expect(bulk.view(0, 4)).toBe(null);
  lane.write(2, 1, new Uint8Array(PAGE_BYTES).fill(2));
  expect(Atomics.load(door.words, MISSING)).toBe(3);
  other.write(0, 4, new Uint8Array(4 * PAGE_BYTES).fill(3));
  expect(firstBytes(5)).toEqual([3, 3, 2, 3, 7]);
  expect(Atomics.load(door.words, MISSING)).toBe(0);
});

test("questions are merged, bounded by seats, and taken in turn", () => {
  const door = createFaultDoor([{ name: "ram", pageBytes: 4 * KIB, pageCount: 64 }], createGate());
  discardPages(door, 0, 0, -1);
  for (const [seat, page] of [
    [0, 5],
    [1, 5],
    [2, 9],
  ] as const) {
    expect(awaitPage(door, { seat, block: 0, page }, 1)).toBe(false);
  }
  const share = { lane: 0, lanes: 1 };
  expect(takeQuestion(door, { from: 1, ...share })).toMatchObject({ seat: 1, page: 5 });
  expect(takeQuestion(door, { from: 2, ...share })).toMatchObject({ seat: 2, page: 9 });
  expect(takeQuestion(door, { from: 3, ...share })).toBe(null);
  expect(isPresent(door, 0, 40)).toBe(true);
  expect(awaitPage(door, { seat: 0, block: 0, page: 40 }, 1)).toBe(true);
  expect(faultTimes(door)).toMatchObject({ stages: { total: { count: 0 } }, vcpus: [{}, {}, {}] });
  expect(() => awaitPage(door, { seat: 256, block: 0, page: 5 }, 1)).toThrow(RangeError);
});

test("when the guest goes over", () => {
  const facts = { rounds: 2, verdict: "continue", isRequested: false, isOutOfTime: false } as const;
  const over = (postcopy: "never" | "manual" | "after-rounds" | "not-converging", more = {}) =>
    goesOver({ ...facts, ...more }, resolveParameters({ postcopy }));
  expect(over("never", { isRequested: true, isOutOfTime: true, verdict: "give-up" })).toBe(false);
  expect([over("manual"), over("manual", { isRequested: true })]).toEqual([false, true]);
  expect([over("after-rounds"), over("after-rounds", { rounds: 0 })]).toEqual([true, false]);
  expect(over("not-converging")).toBe(false);
  expect(over("not-converging", { verdict: "give-up" })).toBe(true);
  expect(over("not-converging", { isOutOfTime: true })).toBe(true);
});

test("a guest of more pages than can be counted as missing is refused before memory is prepared", () => {
  const host = new MemoryGuestDestination();
  const [half, page] = [2 ** 43, 4 * KIB];
  const guest = (lastBytes: number) => [
    { name: "low", sizeBytes: half, pageBytes: page },
    // It travels in pages of 4 KiB.
    { name: "high", sizeBytes: half - 2 * MIB, pageBytes: 2 * MIB },
    { name: "last", sizeBytes: lastBytes, pageBytes: page },
  ];
  checkPostcopy(host, 1, guest(2 * MIB - page));
  checkPostcopy(host, 0, guest(2 * MIB));
  expect(() => checkPostcopy(host, 1, guest(2 * MIB))).toThrow(
    expect.objectContaining({
      code: "POSTCOPY_UNSUPPORTED",
      message: expect.stringContaining("4294967296 pages"),
    }),
  );
});

test(`a host that cannot wait for pages is spared; a cancel before COMMIT too, and the retry succeeds (SEED=${seed})`, async () => {
  const guest = await MemoryGuest.create(smallShape(seed));
  onTestFinished(() => guest.stop());
  await guest.run();
  const to = new MemoryGuestDestination();
  onTestFinished(() => to.discard());
  const { prepare, loadDevices, resume, discard } = to;
  const plain: DestinationHost = {
    prepare: prepare.bind(to),
    loadDevices: loadDevices.bind(to),
    resume: resume.bind(to),
    discard: discard.bind(to),
  };
  const attempt = async (host: DestinationHost, cancelAt: string | null) => {
    const address = Promise.withResolvers<string>();
    const arriving = migrateIn(host, "tcp:127.0.0.1:0", { onListening: address.resolve });
    const cancel = new AbortController();
    const leaving = migrateOut(guest, await address.promise, {
      channels: 2,
      postcopy: "after-rounds",
      maxBandwidthBytesPerSecond: 256 * MIB,
      signal: cancel.signal,
      onPhase: (phase) => {
        if (phase === cancelAt) cancel.abort();
      },
    });
    return await Promise.all([outcomeOf(leaving), outcomeOf(arriving)]);
  };
  const [refused] = await attempt(plain, null);
  expect(refused.failure).toMatchObject({ code: "POSTCOPY_UNSUPPORTED", at: "destination" });
  const [cancelled] = await attempt(to, "ready");
  expect(cancelled.failure?.code).toBe("CANCELLED");
  expect([guest.running, guest.tracking]).toEqual([true, false]);
  await untilWritten(guest, guest.writtenPages + 100);
  const outcomes = await attempt(to, null);
  expect(outcomes.map(({ failure }) => failure)).toEqual([null, null]);
  await to.guest.pause();
  expect(await to.guest.verify()).toEqual([]);
});
