import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import { geometryOf } from "../engine/block.ts";
import { ScannedBlock } from "../engine/scanned-block.ts";
import { createControl } from "../workers/control.ts";
import { popcount } from "../workers/dirty-words.ts";
import { PageScanner } from "../workers/page-scanner.ts";
import { PageSender } from "../workers/page-sender.ts";
import { Piece } from "../workers/piece.ts";
import type { ScanPart, ScanTables, SendBlock } from "../workers/protocol.ts";
import { openRam } from "../workers/ram.ts";
import { PIECE_BYTES, Workbench } from "../workers/workbench.ts";
import { fileMemory, type GuardedMemory, sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import * as pipeline from "./fixtures/wire-pipeline.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const PAGE_SIZES = [4 * KIB, 16 * KIB, 64 * KIB] as const;
const seed = seedFromEnvironment();

let folder: string;
let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "multifd-scan-"));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Not a multiple of chunks, nor of words. */
const PAGES = 333;

function memoryOf(kind: "shared" | "file", name: string, bytes: number): GuardedMemory {
  return kind === "shared" ? sharedMemory(bytes) : fileMemory(folder, name, bytes);
}

function tablesOf(block: SendBlock, pids?: readonly number[]): ScanTables {
  const logs = [{ kind: "scan", block: block.name, ...(pids ? { presence: { pids } } : {}) }];
  return new ScannedBlock(block, block, logs as []).tables;
}

/** A third of the pages zero, the others random. */
function contentOf(pageBytes: number, random: Prng): Uint8Array {
  const content = new Uint8Array(PAGES * pageBytes);
  random.bytes(content);
  for (let page = 0; page < PAGES; page += 1) {
    if (random.below(3) === 0) pageOf(content, page, pageBytes).fill(0);
  }
  return content;
}

function pageOf(content: Uint8Array, page: number, pageBytes: number): Uint8Array {
  return content.subarray(page * pageBytes, (page + 1) * pageBytes);
}

/** Changes some pages, each surely: a bit, all of it, to zero and from zero. Returns how many. */
function changeSome(content: Uint8Array, pageBytes: number, random: Prng): number {
  let changed = 0;
  for (let page = random.below(5); page < PAGES; page += 1 + random.below(20)) {
    const bytes = pageOf(content, page, pageBytes);
    const isZero = bytes.every((byte) => byte === 0);
    const kind = random.below(3);
    if (kind === 0 && !isZero) bytes.fill(0);
    else if (kind === 1) bytes.fill((bytes[0] ?? 0) + 1);
    else {
      const at = [0, bytes.length - 1, random.below(bytes.length)][random.below(3)] ?? 0;
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.below(8));
    }
    changed += 1;
  }
  return changed;
}

for (const kind of ["shared", "file"] as const) {
  for (const pageBytes of PAGE_SIZES) {
    for (const shrinking of [{}, { cacheBytes: 256 * KIB }] as const) {
      const how = "cacheBytes" in shrinking ? "with" : "without";
      test(`a scan of pages of ${pageBytes} in ${kind} memory sends just what changed, ${how} deltas (SEED=${seed})`, async () => {
        const random = new Prng(seed);
        const sizeBytes = PAGES * pageBytes;
        const block = {
          name: "ram",
          sizeBytes,
          pageBytes,
          source: memoryOf(kind, "source", sizeBytes),
          target: memoryOf(kind, "target", sizeBytes),
          isPristine: false,
        };
        const content = contentOf(pageBytes, random);
        block.source.write(content);
        block.target.write(new Uint8Array(sizeBytes).fill(0xee));
        const line = await pipeline.Pipeline.start(pairs, [block], true, shrinking);
        line.sender.scan(new Map([[0, tablesOf(pipeline.sendBlockOf(block))]]));

        expect(line.sendAll()).toBe(PAGES);
        expect(line.send()).toBe(0);
        const sentBytes = line.sent.read("movedBytes");
        for (let round = 0; round < 8; round += 1) {
          const wanted = changeSome(content, pageBytes, random);
          block.source.write(content);
          const foundBefore = line.sent.read("foundPages");
          expect(line.send()).toBe(wanted);
          expect(line.sent.read("foundPages") - foundBefore).toBe(wanted);
          expect(line.send()).toBe(0);
        }
        expect(line.sent.read("movedBytes")).toBeGreaterThan(sentBytes);
        expect(line.sent.read("scannedBytes")).toBe(18 * sizeBytes);
        expect(await line.end()).toMatchObject({ state: "done" });
        expect(Buffer.compare(block.target.read(), content)).toBe(0);
        expect([block.source.isGuarded, block.target.isGuarded]).toEqual([true, true]);
      });
    }
  }
}

test(`where nothing changed nothing is written to the channel (SEED=${seed})`, async () => {
  const world = new FileWorld(new Prng(seed));
  world.mark();
  expect(world.send()).toBe(PAGES);
  const sentBytes = world.sentBytes;
  for (let round = 0; round < 3; round += 1) expect(world.send()).toBe(0);
  expect(world.sentBytes).toBe(sentBytes);
  world.close();
});

test(`a page that is marked goes out whatever its hash, and once (SEED=${seed})`, async () => {
  const world = new FileWorld(new Prng(seed));
  world.mark();
  world.send();
  pipeline.markPages(world.block, [0, 7, PAGES - 1]);
  expect(world.send()).toBe(3);
  expect(world.send()).toBe(0);
  world.close();
});

test(`what a scan found is dirty again when sending fails, and goes out at the next try (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const world = new FileWorld(random);
  world.mark();
  world.send();
  const before = world.content.slice();
  const changed = changeSome(world.content, world.pageBytes, random);
  const isChanged = (page: number): boolean =>
    Buffer.compare(
      pageOf(before, page, world.pageBytes),
      pageOf(world.content, page, world.pageBytes),
    ) !== 0;
  world.source.write(world.content);
  pipeline.markPages(world.block, [3]);
  const wanted = changed + (isChanged(3) ? 0 : 1);
  const lost = expect.objectContaining({ code: "CHANNEL_LOST" });
  expect(() => world.sendNowhere()).toThrow(lost);
  expect(world.dirtyPages).toBe(wanted);
  // The hashes are those of what should have gone; only the marks tell that it did not.
  expect(world.send()).toBe(wanted);
  expect(world.dirtyPages).toBe(0);
  expect(world.send()).toBe(0);
  world.close();
});

test("pages that nobody maps and that were zero are left out, until all the rest is asked for", () => {
  const world = new FileWorld(new Prng(1), [process.pid]);
  world.content.fill(0);
  for (const page of [5, 40, 300]) pageOf(world.content, page, world.pageBytes).fill(page);
  world.source.write(world.content);
  world.mark();
  expect(world.send()).toBe(PAGES);
  world.tables.mapped?.fill(0);
  const scanned = world.counters.read("scannedBytes");
  expect(world.send("likely")).toBe(0);
  // What was sent with content is read, mapped or not.
  expect(world.counters.read("scannedBytes") - scanned).toBe(3 * world.pageBytes);
  // A change in a page that is mapped is found, one in another page by the rest only.
  for (const page of [6, 7, 40]) pageOf(world.content, page, world.pageBytes).fill(9);
  pageOf(world.content, 300, world.pageBytes).fill(0);
  world.source.write(world.content);
  if (world.tables.mapped !== null) world.tables.mapped[0] = 1 << 6;
  expect(world.send("likely")).toBe(3);
  expect(world.send("rest")).toBe(1);
  expect(world.send("all")).toBe(0);
  world.close();
});

test(`a piece is sent as soon as it is full, before anything behind it is read (SEED=${seed})`, () => {
  const [sizeBytes, pageBytes] = [4 * MIB, 4 * KIB];
  const pages = sizeBytes / pageBytes;
  const source = memoryOf("file", "source", sizeBytes);
  const content = new Uint8Array(sizeBytes);
  new Prng(seed).bytes(content);
  source.write(content);
  const block = pipeline.sendBlockOf({ name: "ram", sizeBytes, pageBytes, source });
  const counters = pipeline.countersOf(createControl(1));
  const bench = new Workbench();
  const piece = new Piece(bench);
  const scannedBytes: number[] = [];
  const flush = (): void => {
    scannedBytes.push(counters.read("scannedBytes"));
    piece.pages = 0;
  };
  const taken = { first: 0, words: new Int32Array(pages / 32) };
  const ram = openRam(block, "read");
  const terms = { tables: tablesOf(block), part: "all", flush } as const;
  const found = new PageScanner(bench, piece, counters).stage(taken, { ...block, ram }, terms);
  expect(found).toBe(pages);
  expect(piece.pages).toBe(PIECE_BYTES / pageBytes);
  const pieces = Array.from({ length: sizeBytes / PIECE_BYTES }, (_, index) => index + 1);
  expect(scannedBytes).toEqual(pieces.slice(0, -1).map((count) => count * PIECE_BYTES));
});

/** A sender whose channel is a file, over memory in a file. */
class FileWorld {
  readonly pageBytes = 4 * KIB;
  readonly content: Uint8Array;
  readonly source: GuardedMemory;
  readonly block: SendBlock;
  readonly tables: ScanTables;
  readonly sender: PageSender;
  readonly counters;
  readonly #setup;
  #rounds = 0;
  readonly #fd: number;

  constructor(random: Prng, pids?: readonly number[]) {
    const sizeBytes = PAGES * this.pageBytes;
    this.content = contentOf(this.pageBytes, random);
    this.source = fileMemory(folder, "source", sizeBytes);
    this.source.write(this.content);
    const announced = { name: "ram", sizeBytes, pageBytes: this.pageBytes };
    this.block = {
      ...pipeline.sendBlockOf({ ...announced, source: this.source }),
      ...geometryOf(announced, pipeline.CHUNK_BYTES),
    };
    this.tables = tablesOf(this.block, pids);
    this.#fd = openSync(join(folder, "stream"), "w");
    this.#setup = pipeline.sendSetupOf([this.block], false);
    this.counters = pipeline.countersOf(this.#setup.control);
    this.sender = this.#senderTo(this.#fd);
  }

  #senderTo(fd: number): PageSender {
    const sender = new PageSender(this.#setup, pipeline.placeOf(fd), null);
    sender.scan(new Map([[0, this.tables]]));
    return sender;
  }

  mark(): void {
    pipeline.markPages(this.block, Array(PAGES).keys());
  }

  send(part: ScanPart = "all"): number {
    this.#rounds += 1;
    return this.sender.send(0, pipeline.chunksOf(this.block), this.#rounds, part);
  }

  get sentBytes(): number {
    return this.counters.read("movedBytes");
  }

  get dirtyPages(): number {
    return this.block.dirty.words.reduce((sum, word) => sum + popcount(word), 0);
  }

  /** Scans as `send` does, over a channel that takes nothing. */
  sendNowhere(): void {
    const fd = openSync("/dev/full", "w");
    const sender = this.#senderTo(fd);
    try {
      sender.send(0, pipeline.chunksOf(this.block), this.#rounds + 1);
    } finally {
      sender.close();
      closeSync(fd);
    }
  }

  close(): void {
    this.sender.close();
    closeSync(this.#fd);
  }
}
