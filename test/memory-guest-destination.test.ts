import { expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { Deadline } from "../base/clock.ts";
import { KIB, MIB } from "../base/units.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import type { SourceHost } from "../engine/host.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import { createFaultDoor, discardPages, setLink } from "../workers/fault-door.ts";
import { createGate, faultsSoFar } from "../workers/gate.ts";
import {
  mixedShape,
  PAGE_BYTES,
  PATTERNS,
  smallShape,
  untilWritten,
} from "./fixtures/memory-guest-shapes.ts";
import { vcpuThreadCount } from "./fixtures/memory-guest-threads.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

type Options = ConstructorParameters<typeof MemoryGuestDestination>[0];

async function runningGuest(shape: GuestShape): Promise<MemoryGuest> {
  const guest = await MemoryGuest.create(shape);
  onTestFinished(() => guest.stop());
  await guest.run();
  await untilWritten(guest, 500);
  return guest;
}

function destination(options?: Options): MemoryGuestDestination {
  const host = new MemoryGuestDestination(options);
  onTestFinished(() => host.discard());
  return host;
}

function announced({ blocks }: Pick<SourceHost, "blocks">): BlockAnnouncement[] {
  return blocks.map(({ name, sizeBytes, pageBytes }) => ({ name, sizeBytes, pageBytes }));
}

function bytesOf(block: Block): Uint8Array {
  if (block.place.kind !== "shared") throw new Error("Cannot reach this block");
  return new Uint8Array(block.place.buffer);
}

/** Moves the guest as a migration without pre-copy would. */
async function move(guest: MemoryGuest, to: MemoryGuestDestination): Promise<void> {
  await guest.pause();
  // The destination is told of blocks in any order.
  const blocks = await to.prepare(announced(guest).toReversed());
  for (const block of guest.blocks) {
    const target = must(
      blocks.find(({ name }) => name === block.name),
      "every announced block is provided",
    );
    bytesOf(target).set(bytesOf(block));
  }
  await to.loadDevices(await guest.saveDevices());
}

for (const [name, shape] of [
  ...PATTERNS.map((pattern) => [pattern, smallShape(seed, { pattern })] as const),
  ["mixed", mixedShape(seed)] as const,
  ["no vCPU", { ...smallShape(seed), vcpus: [] }] as const,
]) {
  test(`a guest goes on from its exact state, and onward: ${name} (SEED=${seed})`, async () => {
    let guest = await (shape.vcpus.length > 0 ? runningGuest(shape) : MemoryGuest.create(shape));
    onTestFinished(() => guest.stop());
    for (let hop = 0; hop < 2; hop += 1) {
      const to = destination();
      await move(guest, to);
      const { running, tracking, throttlePercent } = to.guest;
      expect([running, tracking, throttlePercent]).toEqual([false, false, 0]);
      expect(await to.guest.saveDevices()).toEqual(await guest.saveDevices());
      expect(to.guest.shape).toEqual(guest.shape);
      expect(await to.guest.verify()).toEqual([]);
      await to.resume();
      expect(to.guest.running).toBe(true);
      if (shape.vcpus.length > 0) await untilWritten(to.guest, 500);
      await to.guest.pause();
      expect(await to.guest.verify()).toEqual([]);
      expect(await guest.verify()).toEqual([]);
      guest = to.guest;
    }
  });
}

test("a page that did not arrive is still missed after the guest went on", async () => {
  const guest = await runningGuest(smallShape(1));
  const to = destination();
  const blocks = await to.prepare(announced(guest));
  await guest.pause(); // Else a page may be torn as well.
  bytesOf(must(blocks[0], "one block")).set(bytesOf(must(guest.blocks[0], "one block")));
  await guest.run();
  await untilWritten(guest, 500);
  await guest.pause();
  const [source, target] = [guest.blocks[0], blocks[0]].map((block) => bytesOf(must(block, "one")));
  const late = must(source, "a source").subarray(0, 100 * PAGE_BYTES);
  must(target, "a target").set(late);
  await to.loadDevices(await guest.saveDevices());
  await to.resume();
  await untilWritten(to.guest, 500);
  await to.guest.pause();
  const problems = await to.guest.verify();
  expect(problems[0]).toMatch(/^block "ram" page 100 is lost: it holds write \d+, wanted \d+$/);
  expect(problems.at(-1)).toBe("and 143 more pages");
});

test("what has come of a guest is checked while the rest of it comes", async () => {
  const guest = await runningGuest(smallShape(1));
  await guest.pause();
  const to = destination();
  const [target] = await to.prepare(announced(guest));
  const memory = bytesOf(must(target, "one block"));
  memory.set(bytesOf(must(guest.blocks[0], "one block")));
  const pageCount = memory.length / PAGE_BYTES;
  const door = createFaultDoor([{ name: "ram", pageBytes: PAGE_BYTES, pageCount }], createGate());
  discardPages(door, 0, 0, 0b111000);
  memory.fill(0xff, 3 * PAGE_BYTES, 6 * PAGE_BYTES);
  to.takeFaults(door);
  await to.loadDevices(await guest.saveDevices());
  expect(await to.guest.verify()).toHaveLength(3);
  expect(await to.guest.verifyPresent()).toEqual([]);
  memory.fill(0xff, 7 * PAGE_BYTES, 8 * PAGE_BYTES);
  const damaged = [expect.stringMatching(/^block "ram" page 7 is /)];
  expect(await to.guest.verifyPresent()).toEqual(damaged);
});

test("memory that is provided reads as zero, says that it is pristine, and is not shared", async () => {
  const [one, two] = [destination(), destination()];
  const [first] = await one.prepare(announced(mixedShapeHost()));
  const [second] = await two.prepare(announced(mixedShapeHost()));
  expect(first?.pristine).toBe(true);
  bytesOf(must(first, "a block")).fill(1);
  expect(new Set(bytesOf(must(second, "a block")))).toEqual(new Set([0]));
});

const RAM = { name: "ram", sizeBytes: MIB, pageBytes: PAGE_BYTES };
const mismatches: readonly [string, readonly BlockAnnouncement[], Options, object][] = [
  ["too large a block", [RAM, { ...RAM, name: "b" }], { limitBytes: MIB }, { block: "b" }],
  ["an absurd block", [{ ...RAM, sizeBytes: 2 ** 52 }], { limitBytes: 2 ** 53 }, { block: "ram" }],
  ["a block of no whole pages", [{ ...RAM, sizeBytes: MIB + 1 }], {}, { block: "ram" }],
  ["an odd page size", [{ ...RAM, pageBytes: 5000 }], {}, { block: "ram" }],
  ["a block twice", [RAM, RAM], {}, { block: "ram", problem: "it comes twice" }],
  ["an unknown block", [RAM, { ...RAM, name: "x" }], { expected: [RAM] }, { block: "x" }],
  ["a missing block", [RAM], { expected: [RAM, { ...RAM, name: "x" }] }, { block: "x" }],
  ["another size", [RAM], { expected: [{ ...RAM, sizeBytes: 2 * MIB }] }, { block: "ram" }],
];

for (const [name, given, options, facts] of mismatches) {
  test(`${name} is BLOCK_MISMATCH and leaves nothing behind`, async () => {
    const to = destination(options);
    await expect(to.prepare(given)).rejects.toMatchObject({ code: "BLOCK_MISMATCH", facts });
    await to.discard();
    expect(vcpuThreadCount()).toBe(0);
  });
}

test("expected blocks keep the page size of this host", async () => {
  const to = destination({ expected: [{ ...RAM, pageBytes: 64 * KIB }] });
  expect(await to.prepare([RAM])).toMatchObject([{ ...RAM, pageBytes: 64 * KIB }]);
  const options = { expected: [{ ...RAM, pageBytes: 1 }] };
  expect(() => new MemoryGuestDestination(options)).toThrow(RangeError);
});

test("devices that do not fit the prepared memory are refused, and the right ones still load", async () => {
  const guest = await runningGuest(smallShape(1));
  const to = destination();
  await guest.pause();
  const sections = await guest.saveDevices();
  await expect(to.loadDevices(sections)).rejects.toThrow("no memory was prepared");
  const blocks = await to.prepare(announced(guest));
  for (const shape of [
    { ...smallShape(1), blocks: [...smallShape(1).blocks, { ...RAM, name: "more" }] },
    { ...smallShape(1), blocks: [{ ...RAM, sizeBytes: 2 * MIB }] },
    { ...smallShape(1), blocks: [{ ...RAM, name: "rom" }], vcpus: [] },
  ]) {
    const other = await MemoryGuest.create(shape);
    onTestFinished(() => other.stop());
    const wrong = to.loadDevices(await other.saveDevices());
    await expect(wrong).rejects.toThrow(
      /^Cannot load the guest's devices: (it has 2|block "r.m" is)/,
    );
  }
  await expect(to.loadDevices([])).rejects.toThrow("is missing");
  await expect(to.resume()).rejects.toThrow("it has not arrived");
  bytesOf(must(blocks[0], "a block")).set(bytesOf(must(guest.blocks[0], "a block")));
  await to.loadDevices(sections);
  expect(await to.guest.verify()).toEqual([]);
  await expect(to.loadDevices(sections)).rejects.toThrow("they were loaded before");
  await expect(to.prepare(announced(guest))).rejects.toThrow("an earlier attempt is here");
});

for (const vcpuThreads of [0, 1, 4, 6]) {
  test(`a guest of 4 vCPUs arrives where ${vcpuThreads} threads wait, and none is left over`, async () => {
    const guest = await MemoryGuest.create(mixedShape(1));
    const to = destination({ vcpuThreads });
    await move(guest, to);
    await guest.stop();
    await expect.poll(vcpuThreadCount, { timeout: 20_000 }).toBe(4);
    expect(to.guest.threadCount).toBe(4);
    await to.discard();
    expect(vcpuThreadCount()).toBe(0);
  });
}

test("after discard, at any moment, nothing is left and another attempt succeeds", async () => {
  const guest = await runningGuest(mixedShape(1));
  await guest.pause();
  const sections = await guest.saveDevices();
  const to = destination({ vcpuThreads: 2 });
  await to.discard();

  const preparing = to.prepare(announced(guest));
  await to.discard();
  await expect(preparing).rejects.toThrow("the attempt was discarded");

  await to.prepare(announced(guest));
  await to.discard();

  await to.prepare(announced(guest));
  const loading = to.loadDevices(sections);
  await to.discard();
  await expect(loading).rejects.toThrow("the attempt was discarded");

  await to.prepare(announced(guest));
  await to.loadDevices(sections);
  await to.discard();
  expect(() => to.guest).toThrow("it has not arrived");
  expect(vcpuThreadCount()).toBe(guest.threadCount);

  await move(guest, to);
  await to.resume();
  await untilWritten(to.guest, 100);
  await to.guest.pause();
  expect(await to.guest.verify()).toEqual([]);
});

/** Nothing that comes takes so long. */
const COMES_WITHIN_MS = 20_000;

test(`a guest whose missing pages never come stands still, and obeys (SEED=${seed})`, async () => {
  const guest = await runningGuest(smallShape(seed));
  await guest.pause();
  const to = destination();
  await to.prepare(announced(guest));
  const pageCount = MIB / PAGE_BYTES;
  const door = createFaultDoor([{ name: "ram", pageBytes: PAGE_BYTES, pageCount }], createGate());
  for (let index = 0; index < pageCount / 32; index += 1) discardPages(door, 0, index, -1);
  to.takeFaults(door);
  await to.loadDevices(await guest.saveDevices());
  await to.resume();
  /** Until its vCPU has begun to wait so many times more. */
  const untilWaited = async (times: number): Promise<void> => {
    const deadline = new Deadline(COMES_WITHIN_MS);
    const wanted = faultsSoFar(door) + times;
    while (faultsSoFar(door) < wanted) {
      expect(deadline.passed, "it waits again and again").toBe(false);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  await untilWaited(1);
  setLink(door, "given-up");
  await untilWaited(2);
  expect([to.guest.running, to.guest.writtenPages]).toEqual([true, 0]);
  await to.guest.pause();
  expect(to.guest.running).toBe(false);
});

function mixedShapeHost(): Pick<SourceHost, "blocks"> {
  const place = { kind: "shared", buffer: new SharedArrayBuffer(0) } as const;
  return { blocks: mixedShape(1).blocks.map((block) => ({ ...block, place })) };
}
