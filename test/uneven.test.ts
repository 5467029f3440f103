import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import { HEADER_BYTES } from "../channels/frame.ts";
import { migrateIn } from "../engine/destination.ts";
import { migrateOut } from "../engine/source.ts";
import { bytesOf, difference } from "./harness/guest-memory.ts";
import { outcomeOf } from "./harness/pair.ts";
import { RecordingDestination } from "./harness/recording-destination.ts";
import { RecordingSource } from "./harness/recording-source.ts";
import { seedFromEnvironment } from "./prng.ts";

/** Channels that differ, between real engines: who carries how much is asserted, and no time. */
const seed = seedFromEnvironment();

const CHANNELS = 4;
const SLOW = 2;
const PAGE_BYTES = 4 * KIB;

/** 24 chunks: six for each channel. */
const SHAPE = [{ name: "ram", sizeBytes: 48 * MIB, pageBytes: PAGE_BYTES }];

/** Where a HELLO, the first frame of a connection, names its channel. */
const HELLO_CHANNEL_AT = HEADER_BYTES + 20;

/** One piece goes by the slow channel for so many by the others. */
const SLOWNESS = 16;

/** The others take so long for what is read at a time: a link that has an end, as links have. */
const PIECE_MS = 1;

/** Nothing came by the others for so long: they wait for the slow one. */
const QUIET_MS = 10;

/**
 * A link whose channels are as fast as each other, but for one. How much slower that is goes by what
 * passes, and by no clock. Its sockets hold little, so what is given to it waits at the source.
 */
class UnevenLink implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "multifd-uneven-"));
  readonly #server: Server;
  readonly #sockets: Socket[] = [];
  #passed = 0;
  #goOn: () => void = () => {};
  #quiet: NodeJS.Timeout;

  constructor() {
    this.#server = createServer((socket) => this.#forward(socket));
    this.#quiet = setInterval(() => this.#goOn(), QUIET_MS);
  }

  /** Where the destination listens. */
  get target(): string {
    return join(this.#folder, "target");
  }

  /** Where the source connects to. */
  async listen(): Promise<string> {
    const path = join(this.#folder, "link");
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.listen({ path }, resolve);
    await promise;
    return `unix:${path}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#quiet);
    for (const socket of this.#sockets) socket.destroy();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    await promise;
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #forward(source: Socket): void {
    const destination = connect(this.target);
    this.#sockets.push(source, destination);
    for (const [socket, other] of [
      [source, destination],
      [destination, source],
    ] as const) {
      socket.on("error", () => {}); // Both ends say what it is to them.
      socket.on("close", () => other.destroy());
    }
    destination.pipe(source);
    let channel = -1;
    source.on("data", (bytes: Buffer) => {
      if (channel === -1) channel = bytes.readUInt16LE(HELLO_CHANNEL_AT);
      destination.write(bytes);
      if (channel === SLOW) this.#hold(source);
      else if (channel > 0) this.#pace(source);
    });
  }

  #hold(source: Socket): void {
    source.pause();
    this.#passed = 0;
    this.#goOn = () => source.resume();
  }

  #pace(source: Socket): void {
    this.#quiet.refresh();
    this.#passed += 1;
    if (this.#passed % SLOWNESS === 0) this.#goOn();
    source.pause();
    setTimeout(() => source.resume(), PIECE_MS);
  }
}

test(`what a slow channel does not come to, the others bring over (SEED=${seed})`, async () => {
  const source = new RecordingSource({ seed, shape: SHAPE });
  const destination = new RecordingDestination();
  const wireBytes = nonZeroBytes(source);
  await using link = new UnevenLink();
  const address = await link.listen();
  const listening = Promise.withResolvers<void>();
  const arriving = outcomeOf(
    migrateIn(destination, `unix:${link.target}`, { onListening: () => listening.resolve() }),
  );
  await listening.promise;
  const { report, failure } = await outcomeOf(migrateOut(source, address, { channels: CHANNELS }));
  expect(failure?.toJSON()).toBeUndefined();
  expect((await arriving).failure).toBe(null);
  expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);

  const bulk = report?.channels.filter(({ lane }) => lane === "bulk") ?? [];
  expect(bulk.map(({ id, losses }) => [id, losses])).toEqual([1, 2, 3, 4].map((id) => [id, 0]));
  const [slow, ...others] = [SLOW, 1, 3, 4].map((id) => bulk[id - 1]?.sentBytes ?? 0);
  const fairBytes = wireBytes / CHANNELS;
  expect(slow).toBeGreaterThan(0);
  expect(slow).toBeLessThan(fairBytes * 0.6);
  expect(others.reduce((sum, bytes) => sum + bytes, 0)).toBeGreaterThan(fairBytes * 3.4);
  for (const bytes of others) expect(bytes).toBeGreaterThan(slow ?? 0);
});

/** What travels, but for a few bytes in every thousand: zero pages take next to nothing. */
function nonZeroBytes({ blocks }: RecordingSource): number {
  const zero = Buffer.alloc(PAGE_BYTES);
  let sum = 0;
  for (const block of blocks) {
    const bytes = bytesOf(block);
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
      if (Buffer.compare(bytes.subarray(at, at + PAGE_BYTES), zero) !== 0) sum += PAGE_BYTES;
    }
  }
  return sum;
}
