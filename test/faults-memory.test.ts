import { link, mkdtemp, open, readdir, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { BLOCKS_MAX, DESCRIPTION_BYTES_MAX, NAME_BYTES_MAX } from "../channels/frame.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import { fileGuest, fileGuestDestination } from "../hosts/file-guest.ts";
import { FaultRig, verdictsOf, warmUp } from "./harness/fault-rig.ts";
import { blockNamed, bytesOf, SMALL_GUEST } from "./harness/guest-memory.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { migratePair } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { SmallDisk, whyNoSmallDisk } from "./harness/small-disk.ts";
import { seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Less than the guest has that is not zero, and more than nothing. */
const ROOM_BYTES = 2 * MIB;

/**
 * Some tests need a disk of their own. Where this user may not mount one, their names say that they
 * were not run, and why; what needs no disk is tested in any case.
 */
const obstacle = whyNoSmallDisk();
const diskTest = test.runIf(obstacle === null);
const reason = obstacle === null ? "" : ` [NOT RUN, FOR LACK OF A RIGHT: ${obstacle}]`;

beforeAll(warmUp);

async function newFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "multifd-memory-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  return folder;
}

async function sparseFiles(folder: string, shape: readonly BlockAnnouncement[]): Promise<void> {
  for (const { name, sizeBytes } of shape) {
    const path = join(folder, name);
    await (await open(path, "w")).close();
    await truncate(path, sizeBytes);
  }
}

/** Blocks in files of which nobody has checked anything. */
function filesIn(folder: string, shape: readonly BlockAnnouncement[]): Block[] {
  return shape.map((block) => ({
    ...block,
    pristine: true,
    place: { kind: "file", path: join(folder, block.name), offset: 0 },
  }));
}

async function expectSameAsFiles(blocks: readonly Block[], folder: string): Promise<void> {
  for (const block of blocks) {
    await using file = await open(join(folder, block.name));
    expect(Buffer.compare(await file.readFile(), bytesOf(block))).toBe(0);
  }
}

diskTest(
  `a destination out of space is MEMORY_FULL at both ends (SEED=${seed})${reason}`,
  async () => {
    using disk = new SmallDisk(ROOM_BYTES);
    await sparseFiles(disk.path, SMALL_GUEST);
    const rig = new FaultRig(seed);
    rig.destination = new RecordingDestination((shape) => filesIn(disk.path, shape));
    const outcome = await rig.fails({ out: { channels: 2 } });
    for (const { failure } of [outcome.source, outcome.destination]) {
      expect(failure).toMatchObject({
        code: "MEMORY_FULL",
        at: "destination",
        facts: { path: expect.stringContaining(disk.path) },
      });
    }
    await rig.succeeds();
  },
);

test(`no room for the first byte is MEMORY_FULL at both ends (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const place = { kind: "file", path: "/dev/full", offset: 0 } as const;
  rig.destination = new RecordingDestination((shape) =>
    shape.map((block) => ({ ...block, place, pristine: true })),
  );
  const outcome = await rig.fails({ out: { channels: 2 } });
  expect(verdictsOf(outcome)).toEqual({
    source: "MEMORY_FULL at destination",
    destination: "MEMORY_FULL at destination",
  });
  await rig.succeeds();
});

test(`memory that cannot be opened is MEMORY_UNUSABLE at both ends (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  const place = { kind: "file", path: "/", offset: 0 } as const;
  rig.destination = new RecordingDestination((shape) =>
    shape.map((block) => ({ ...block, place })),
  );
  const outcome = await rig.fails();
  expect(verdictsOf(outcome)).toEqual({
    source: "MEMORY_UNUSABLE at destination",
    destination: "MEMORY_UNUSABLE at destination",
  });
  await rig.succeeds();
});

diskTest(`memory that cannot be written is MEMORY_UNUSABLE (SEED=${seed})${reason}`, async () => {
  using disk = new SmallDisk(64 * MIB);
  await sparseFiles(disk.path, SMALL_GUEST);
  disk.protect();
  const rig = new FaultRig(seed);
  rig.destination = new RecordingDestination((shape) => filesIn(disk.path, shape));
  const outcome = await rig.fails();
  for (const { failure } of [outcome.source, outcome.destination]) {
    expect(failure).toMatchObject({ code: "MEMORY_UNUSABLE", at: "destination" });
    expect(failure?.message).toMatch(/EROFS/);
  }
  await rig.succeeds();
});

diskTest(`a destination's host finds files that it cannot write at once${reason}`, async () => {
  using disk = new SmallDisk(64 * MIB);
  await sparseFiles(disk.path, SMALL_GUEST);
  disk.protect();
  const rig = new FaultRig(seed);
  const files = SMALL_GUEST.map(({ name }) => ({ name, path: join(disk.path, name), offset: 0 }));
  const destination = fileGuestDestination(files);
  const outcome = await migratePair({ source: rig.source, destination });
  expect(outcome.source.failure).toMatchObject({ code: "MEMORY_UNUSABLE", at: "destination" });
  expect(rig.source.calls).toEqual([]);
  rig.expectUnharmed();
  await rig.succeeds();
});

test(`a destination file that is a folder or a device is MEMORY_UNUSABLE (SEED=${seed})`, async () => {
  for (const path of ["/", "/dev/null"]) {
    const rig = new FaultRig(seed);
    const destination = fileGuestDestination([{ name: "ram", path, offset: 0 }]);
    const source = new RecordingSource({ seed, shape: SMALL_GUEST.slice(0, 1) });
    const outcome = await migratePair({ source, destination });
    expect(outcome.source.failure).toMatchObject({ code: "MEMORY_UNUSABLE", at: "destination" });
    await rig.expectNoLeaks();
  }
});

for (const [problem, change] of [
  ["smaller", -4 * KIB],
  ["larger", 4 * KIB],
] as const) {
  test(`a destination file that is ${problem} than its block is refused (SEED=${seed})`, async () => {
    const folder = await newFolder();
    await sparseFiles(
      folder,
      SMALL_GUEST.map((block) => ({ ...block, sizeBytes: block.sizeBytes + change })),
    );
    const rig = new FaultRig(seed);
    const files = SMALL_GUEST.map(({ name }) => ({ name, path: join(folder, name), offset: 0 }));
    const destination = fileGuestDestination(files);
    const outcome = await migratePair({ source: rig.source, destination });
    expect(verdictsOf(outcome)).toEqual({
      source: "MEMORY_UNUSABLE at destination",
      destination: "MEMORY_UNUSABLE at destination",
    });
    expect(outcome.source.failure?.message).toContain(`${SMALL_GUEST[0]?.sizeBytes}`);
    rig.expectUnharmed();

    await sparseFiles(folder, SMALL_GUEST);
    await migratePair({ source: rig.source, destination });
    await expectSameAsFiles(rig.source.blocks, folder);
    await rig.expectNoLeaks();
  });
}

test(`a destination file that goes away is MEMORY_UNUSABLE (SEED=${seed})`, async () => {
  const folder = await newFolder();
  const rig = new FaultRig(seed);
  // The host promised memory, but there is none when the threads open it.
  rig.destination = new RecordingDestination((shape) => filesIn(folder, shape));
  const outcome = await rig.fails({ out: { channels: 2 } });
  expect(verdictsOf(outcome)).toEqual({
    source: "MEMORY_UNUSABLE at destination",
    destination: "MEMORY_UNUSABLE at destination",
  });
  await rig.succeeds();
});

test(`a source file that shrinks is MEMORY_FAILED, and what is left can move (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  const folder = await newFolder();
  const path = join(folder, "ram");
  await sparseFiles(folder, SMALL_GUEST);
  const files = [{ name: "ram", path, offset: 0 }];
  const source = fileGuest(files);
  const { sizeBytes } = blockNamed(source.blocks, "ram");
  await truncate(path, sizeBytes - 64 * KIB);

  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination });
  for (const { failure } of [outcome.source, outcome.destination]) {
    expect(failure).toMatchObject({
      code: "MEMORY_FAILED",
      at: "source",
      facts: { block: "ram", action: "read", reason: "the file is shorter than the block" },
    });
  }
  expect(destination.blocks).toBe(null);

  const retry = await migratePair({ source: fileGuest(files), destination });
  expect(verdictsOf(retry)).toEqual({ source: "completed", destination: "completed" });
  await expectSameAsFiles(destination.blocks ?? [], folder);
  await leaks.settled();
});

test(`a source file that goes away is MEMORY_UNUSABLE at the source (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  const folder = await newFolder();
  await sparseFiles(folder, SMALL_GUEST);
  const files = [{ name: "ram", path: join(folder, "ram"), offset: 0 }];
  const source = fileGuest(files);
  await rm(join(folder, "ram"));
  const destination = new RecordingDestination();
  const outcome = await migratePair({ source, destination });
  expect(verdictsOf(outcome)).toEqual({
    source: "MEMORY_UNUSABLE at source",
    destination: "MEMORY_UNUSABLE at source",
  });
  expect(destination.calls).not.toContain("resume");

  await sparseFiles(folder, SMALL_GUEST);
  const retry = await migratePair({ source, destination });
  expect(verdictsOf(retry)).toEqual({ source: "completed", destination: "completed" });
  await leaks.settled();
});

test(`a destination is not let into the file that its source scans (SEED=${seed})`, async () => {
  const leaks = new LeakCheck();
  const folder = await newFolder();
  await sparseFiles(folder, SMALL_GUEST);
  const filesAt = (suffix: string) =>
    SMALL_GUEST.map(({ name }) => ({ name, path: join(folder, `${name}${suffix}`), offset: 0 }));
  const source = fileGuest(filesAt(""), { dirtyLog: "scan" });
  // By another name, and after one that would have been created.
  const name = must(SMALL_GUEST.at(-1)?.name, "a guest has blocks");
  const path = join(folder, "alias");
  await link(join(folder, name), path);
  const places = filesAt(".new").with(-1, { name, path, offset: 0 });
  const outcome = await migratePair({ source, destination: fileGuestDestination(places) });
  for (const { failure } of [outcome.source, outcome.destination]) {
    expect(failure).toMatchObject({
      code: "MEMORY_UNUSABLE",
      at: "destination",
      facts: { block: name, path },
    });
    expect(failure?.message).toContain("the source's own");
  }
  expect(await readdir(folder)).toHaveLength(SMALL_GUEST.length + 1);
  const retry = await migratePair({ source, destination: fileGuestDestination(filesAt(".new")) });
  expect(verdictsOf(retry)).toEqual({ source: "completed", destination: "completed" });
  await leaks.settled();
});

test(`a source that scans as many files as there may be can tell which (SEED=${seed})`, async () => {
  const folder = await newFolder();
  const files = Array.from({ length: BLOCKS_MAX }, (_, index) => {
    const name = `${index}`.padEnd(NAME_BYTES_MAX, ".");
    return { name, path: join(folder, `${index}`), offset: 0, sizeBytes: 4 * KIB };
  });
  await Promise.all(files.map(async ({ path }) => await writeFile(path, new Uint8Array(4 * KIB))));
  const { description = "" } = fileGuest(files, { dirtyLog: "scan" });
  expect(description.length).toBeLessThanOrEqual(DESCRIPTION_BYTES_MAX);
});
