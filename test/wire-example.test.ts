import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { KIB, MIB } from "../base/units.ts";
import { loadChecksum } from "../channels/checksum.ts";
import {
  BLOCKS_MAX,
  CHANNELS_MAX,
  DESCRIPTION_BYTES_MAX,
  encodeHeader,
  FRAMES,
  type FrameName,
  HEADER_BYTES,
  NAME_BYTES_MAX,
  PARAMETERS_MAX,
  PAYLOAD_BYTES_MAX,
  PIECE_BYTES_MAX,
  RUNS_MAX,
  writeChecksum,
} from "../channels/frame.ts";
import {
  encodeAgreement,
  encodeFailure,
  encodeFence,
  encodeHello,
  encodeWelcome,
  VERSION,
} from "../channels/messages.ts";
import { fingerprintOf } from "../engine/agreement.ts";
import type { Block } from "../engine/block.ts";
import { migrateIn } from "../engine/destination.ts";
import { agreedParameters, resolveParameters } from "../engine/parameters.ts";
import { migrateOut } from "../engine/source.ts";
import { CODECS } from "../workers/codecs/list.ts";
import { ENCODINGS } from "../workers/encodings/list.ts";
import { PIECE_BYTES } from "../workers/workbench.ts";
import { receiveGuest, WireListener } from "./fixtures/wire-destination.ts";
import { MIGRATION_ID, TOKEN } from "./fixtures/wire-messages.ts";
import { CODEC, deltaPayload } from "./fixtures/wire-shrunk.ts";
import { pagesBody, WireSource } from "./fixtures/wire-source.ts";
import { allocate, bytesOf, fillBlocks } from "./harness/guest-memory.ts";
import { pristine, RecordingDestination, used } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";
import { ENCODING, KIND, type WireBlock, wirePageOf } from "./wire-peer.ts";

const seed = seedFromEnvironment();

/** Pages of all kinds: ordinary ones, larger ones, and ones that travel in pieces of 4 KiB. */
const SHAPE = [
  { name: "ram", sizeBytes: 1 * MIB, pageBytes: 4096 },
  { name: "größer", sizeBytes: 5 * 16_384, pageBytes: 16_384 },
  { name: "huge", sizeBytes: 4 * MIB, pageBytes: 2 * MIB },
] as const;

/** How a guest is sent, and what the report must then tell of its pages. */
const SHRINKING = [
  { how: "as it is", options: {}, counts: ["raw"] },
  { how: "in deltas", options: { xbzrle: true }, counts: ["raw", "delta"] },
  { how: "by zstd", options: { compression: "zstd" }, counts: ["compressed"] },
  {
    how: "in deltas and by deflate",
    options: { xbzrle: true, compression: "deflate" },
    counts: ["compressed", "delta"],
  },
] as const;

for (const { how, options, counts } of SHRINKING) {
  test(`a destination written from docs/wire.md takes in a guest that is sent ${how} (SEED=${seed})`, async () => {
    const listener = await WireListener.start();
    const host = new RecordingSource({ seed, shape: SHAPE });
    let writes = 3;
    host.onLook = () => {
      if (writes > 0) host.writePages(100);
      writes -= 1;
    };
    host.onPause = () => host.writePages(20);
    const receiving = receiveGuest(listener);
    const given = { channels: 2, checksum: true, chunkBytes: 128 * KIB, ...options };
    const report = await migrateOut(host, listener.address, given);
    const guest = await receiving;
    listener.close();
    for (const [index, { bytes }] of guest.blocks.entries()) {
      expect(Buffer.compare(bytes, bytesAt(host.blocks, index))).toBe(0);
    }
    for (const count of counts) expect(report.pages[count], count).toBeGreaterThan(0);
  });
}

for (const [name, codec] of Object.entries(CODEC)) {
  if (codec === CODEC.none) continue;
  test(`a source written from docs/wire.md sends a guest by ${name} and in deltas (SEED=${seed})`, async () => {
    const blocks = allocate(SHAPE);
    fillBlocks(blocks, seed);
    const guest: WireBlock[] = blocks.map((block) => ({ ...block, bytes: bytesOf(block) }));
    const host = new RecordingDestination(used);
    const listening = Promise.withResolvers<string>();
    const receiving = migrateIn(host, "tcp:127.0.0.1:0", { onListening: listening.resolve });
    const source = await WireSource.connect(await listening.promise);
    source.main.startPings(1000);
    await source.agree({ blocks: guest, channels: 2 });
    await source.openBulk(2);
    await source.openBulk(1);
    await source.sendShrunk(guest, { codec, hasChecksum: false });
    await source.sendDevices(new Map());
    await source.handOver();
    source.close();
    const { pages } = await receiving;
    const total = guest.reduce((sum, block) => {
      return sum + block.bytes.length / wirePageOf(block.pageBytes);
    }, 0);
    expect([pages.raw + pages.compressed, pages.delta]).toEqual([total, total]);
    expect(pages.compressed).toBeGreaterThan(0);
    for (const [index, { bytes }] of guest.entries()) {
      expect(Buffer.compare(bytes, bytesAt(host.blocks ?? [], index))).toBe(0);
    }
  });
}

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
    expect(guest.fences).toHaveLength(3 * (1 + report.rounds.length));
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

const DOCUMENT = readFileSync(new URL("../docs/wire.md", import.meta.url), "utf8");

/** The blocks of bytes in the document, in order: hexadecimal, and `ab × 4096` for many bytes. */
function examplesOf(text: string): string[] {
  return [...text.matchAll(/```hex\n(.*?)```/gs)].map(([, block]) =>
    (block ?? "")
      .replace(/(\w\w) × (\d+)/g, (_, byte: string, count: string) => byte.repeat(Number(count)))
      .replace(/\s/g, ""),
  );
}

test("the examples in docs/wire.md are what the engine writes", async () => {
  const checksum = await loadChecksum();
  const frame = (name: FrameName, sequence: number, body: Uint8Array, hasChecksum = true) => {
    const bytes = new Uint8Array(HEADER_BYTES + body.length);
    const view = new DataView(bytes.buffer);
    encodeHeader(view, 0, { name, sequence, length: body.length, hasChecksum });
    bytes.set(body, HEADER_BYTES);
    if (hasChecksum) writeChecksum(view, 0, checksum.ofPair(bytes.subarray(0, 16), body));
    return Buffer.from(bytes).toString("hex");
  };
  const parameters = agreedParameters(resolveParameters({}));
  const fingerprint = fingerprintOf(parameters, checksum);
  const blocks = [{ name: "ram", sizeBytes: 1 * MIB, pageBytes: 4096 }];
  const agreement = { channels: 2, blocks, description: "" };
  const hello = { versionMin: 1, versionMax: 1, migrationId: MIGRATION_ID };
  const runs = [
    { first: 3, pages: 5, encoding: ENCODING.zero, payload: new Uint8Array(0) },
    { first: 8, pages: 1, encoding: ENCODING.raw, payload: new Uint8Array(4096).fill(0xab) },
  ];
  const [before, after] = [new Uint8Array(4096).fill(0xab), new Uint8Array(4096).fill(0xab)];
  after.set([1, 2, 3], 0x10);
  after.set([4], 0xfff);
  const payload = deltaPayload(before, after, [1]);
  const delta = { first: 8, pages: 1, encoding: ENCODING.delta, payload };
  const cancelled = new MigrationError("CANCELLED", { phase: "precopy" });
  const none = new Uint8Array(0);
  expect(DOCUMENT).toContain(`0x${fingerprint.toString(16)}`);
  expect(examplesOf(DOCUMENT)).toEqual([
    frame(
      "hello",
      0,
      encodeHello({ ...hello, channel: 0, lane: "main", token: new Uint8Array(32) }),
    ),
    frame("welcome", 0, encodeWelcome({ version: 1, token: TOKEN })),
    frame("agree", 1, encodeAgreement({ ...agreement, fingerprint, parameters })),
    frame("accept", 1, none),
    frame("hello", 0, encodeHello({ ...hello, channel: 1, lane: "bulk", token: TOKEN })),
    frame("pages", 1, pagesBody(0, runs), false),
    frame("pages", 2, pagesBody(0, [delta]), false),
    frame("fence", 3, encodeFence(1), false),
    frame("fenced", 1, encodeFence(1)),
    frame("ping", 2, none),
    frame("failure", 3, encodeFailure(cancelled)),
  ]);
});

/** Cells of the document's tables, without thin spaces within numbers, by their first cell. */
function rowsOf(text: string): Map<string, string[]> {
  const rows = text.split("\n").filter((line) => line.startsWith("| "));
  return new Map(
    rows.map((line) => {
      const [first = "", ...rest] = line
        .split("|")
        .slice(1, -1)
        .map((cell) => cell.trim().replace(/(?<=\d) (?=\d{3})/g, ""));
      return [first, rest];
    }),
  );
}

test("docs/wire.md has every frame, with the number and the limit of the table", () => {
  const rows = rowsOf(DOCUMENT);
  const limits = new Map(
    [...rows].flatMap(([first, [bytes = "", other = "", otherBytes = ""]]) => [
      ...first.split(", ").map((name) => [name, bytes] as const),
      ...other.split(", ").map((name) => [name, otherBytes] as const),
    ]),
  );
  for (const [name, { kind, bodyBytesMax }] of Object.entries(FRAMES)) {
    const title = name.toUpperCase();
    const isNamed =
      DOCUMENT.includes(`${title}, kind ${kind}`) || rows.get(`${kind}`)?.[0] === title;
    expect(isNamed, `${title} is kind ${kind}`).toBe(true);
    expect(limits.get(title)?.replace("≤ ", ""), title).toBe(String(bodyBytesMax));
    expect(KIND[name as FrameName], "the peer was written from the same numbers").toBe(kind);
  }
});

test("docs/wire.md has the limits, versions, parameters and encodings of the code", () => {
  const rows = rowsOf(DOCUMENT);
  const limits: Record<string, number> = {
    "bulk channels": CHANNELS_MAX,
    "parameters in AGREE": PARAMETERS_MAX,
    blocks: BLOCKS_MAX,
    "bytes of a name or value": NAME_BYTES_MAX,
    "bytes of a description": DESCRIPTION_BYTES_MAX,
    "runs in a PAGES frame": RUNS_MAX,
    "payload bytes in a PAGES frame": PAYLOAD_BYTES_MAX,
    "bytes of the pages of a delta run": PIECE_BYTES,
    "bytes in a PIECE": PIECE_BYTES_MAX,
  };
  for (const [what, limit] of Object.entries(limits)) {
    expect(rows.get(what), what).toEqual([String(limit)]);
  }
  expect(DOCUMENT).toContain(`This is wire version ${VERSION.max}.`);
  for (const { name } of agreedParameters(resolveParameters({}))) {
    expect(rows.has(`\`${name}\``), name).toBe(true);
  }
  for (const { number, name } of ENCODINGS) expect(rows.get(`${number}`)?.[0]).toBe(name);
  for (const { number, name } of CODECS) expect(rows.get(`codec ${number}`)?.[0]).toBe(name);
});

test("no number that the page keeps for later is a frame's", () => {
  const [, numbers = ""] = /^\| kind \| (\d[^|]*and up) \|/m.exec(DOCUMENT) ?? [];
  const reserved = numbers.split(/, | and (?=\d)/).map((range) => {
    const [first, last = range.endsWith("and up") ? 255 : first] = range.match(/\d+/g) ?? [];
    return { first: Number(first), last: Number(last) };
  });
  expect(reserved.length).toBeGreaterThan(1);
  for (const { kind } of Object.values(FRAMES)) {
    expect(reserved.filter(({ first, last }) => kind >= first && kind <= last)).toEqual([]);
  }
});
