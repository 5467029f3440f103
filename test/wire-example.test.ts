import { expect, test } from "vitest";
import { MIB } from "../base/units.ts";
import type { Block } from "../engine/block.ts";
import { migrateIn } from "../engine/destination.ts";
import { migrateOut } from "../engine/source.ts";
import { receiveGuest, WireListener } from "./fixtures/wire-destination.ts";
import { WireSource } from "./fixtures/wire-source.ts";
import { allocate, bytesOf, fillBlocks } from "./harness/guest-memory.ts";
import { pristine, RecordingDestination, used } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";
import type { WireBlock } from "./wire-peer.ts";

const seed = seedFromEnvironment();

/** Pages of all kinds: ordinary ones, larger ones, and ones that travel in pieces of 4 KiB. */
const SHAPE = [
  { name: "ram", sizeBytes: 1 * MIB, pageBytes: 4096 },
  { name: "größer", sizeBytes: 5 * 16_384, pageBytes: 16_384 },
  { name: "huge", sizeBytes: 4 * MIB, pageBytes: 2 * MIB },
] as const;

for (const checksum of [false, true]) {
  const how = checksum ? "with checksums" : "without checksums";

  test(`a destination written from docs/wire.md takes a guest in ${how} (SEED=${seed})`, async () => {
    const listener = await WireListener.start();
    const host = new RecordingSource({ seed, shape: SHAPE });
    let writes = 3;
    host.onLook = () => {
      if (writes > 0) host.writePages(100);
      writes -= 1;
    };
    host.onPause = () => host.writePages(20);
    host.sections = [
      { name: "cpu", bytes: new Uint8Array(700_000).fill(9) },
      { name: "", bytes: new Uint8Array(0) },
    ];
    const receiving = receiveGuest(listener);
    const report = await migrateOut(host, listener.address, { channels: 3, checksum });
    const guest = await receiving;
    listener.close();

    expect(guest.blocks.map(({ name }) => name)).toEqual(SHAPE.map(({ name }) => name));
    for (const [index, { bytes }] of guest.blocks.entries()) {
      expect(Buffer.compare(bytes, bytesAt(host.blocks, index))).toBe(0);
    }
    expect([...guest.sections].map(([name, bytes]) => [name, bytes.length])).toEqual([
      ["cpu", 700_000],
      ["", 0],
    ]);
    expect(guest.sections.get("cpu")?.every((byte) => byte === 9)).toBe(true);
    expect(guest.rounds).toBe(report.rounds.length);
    expect(guest.fences).toHaveLength(3);
    expect(guest.hasDone).toBe(true);
    expect(host.running).toBe(false);
  });

  test(`a source written from docs/wire.md sends a guest ${how} (SEED=${seed})`, async () => {
    const blocks = allocate(SHAPE);
    fillBlocks(blocks, seed);
    const guest: WireBlock[] = blocks.map((block) => ({ ...block, bytes: bytesOf(block) }));
    const sections = new Map([
      ["clock", Buffer.from([1, 2, 3])],
      ["cpu", Buffer.alloc(300_000, 7)],
      ["nothing", Buffer.alloc(0)],
    ]);
    for (const provide of [pristine, used]) {
      const host = new RecordingDestination(provide);
      const listening = Promise.withResolvers<string>();
      const options = { checksum, onListening: listening.resolve };
      const receiving = migrateIn(host, "tcp:127.0.0.1:0", options);
      const source = await WireSource.connect(await listening.promise);
      source.main.startPings(1000);
      await source.agree({
        blocks: guest,
        channels: 2,
        parameters: [
          ["chunk-size", "2097152"],
          ["checksum", String(checksum)],
        ],
      });
      await source.openBulk(2);
      await source.openBulk(1);
      await source.sendMemory(guest, checksum);
      await source.sendDevices(sections);
      const untouched = await source.handOver();
      source.close();

      const report = await receiving;
      expect(report.pages.untouched).toBe(untouched);
      expect(untouched > 0).toBe(provide === pristine);
      for (const [index, { bytes }] of guest.entries()) {
        expect(Buffer.compare(bytes, bytesAt(host.blocks ?? [], index))).toBe(0);
      }
      const loaded = host.sections?.map(({ name, bytes }) => [name, Buffer.from(bytes)] as const);
      expect(new Map(loaded)).toEqual(sections);
      expect(host.calls).toEqual(["prepare", "loadDevices", "resume"]);
    }
  });
}

function bytesAt(blocks: readonly Block[], index: number): Uint8Array {
  const block = blocks[index];
  if (block === undefined) throw new RangeError("the guest lacks a block");
  return bytesOf(block);
}
