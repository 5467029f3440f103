import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import type { DestinationHost, SourceHost } from "../../engine/host.ts";
import { fileGuestDestination } from "../../hosts/file-guest.ts";
import type { RamPlace } from "../../workers/ram.ts";
import type { WriterTask } from "../fixtures/scan-writer.ts";

/** A block of a busy guest, in shared memory or in a file. */
export interface BusyBlock extends BlockAnnouncement {
  readonly kind: "shared" | "file";
}

/**
 * A guest that tells nobody what it writes: one thread per block writes it at full speed, but while
 * it is paused. Its memory must be scanned.
 */
export class BusyGuest implements SourceHost {
  readonly blocks: readonly Block[];
  readonly #folder = mkdtempSync(join(tmpdir(), "multifd-busy-"));
  readonly #writers: readonly { thread: Worker; words: Int32Array }[];

  constructor(shape: readonly BusyBlock[], seed: number) {
    this.blocks = shape.map(({ kind, ...block }) => ({
      ...block,
      place: this.#place(kind, block),
    }));
    this.#writers = this.blocks.map(({ place, sizeBytes }, index) => {
      const words = new Int32Array(new SharedArrayBuffer(16));
      const workerData: WriterTask = { place, sizeBytes, seed: (seed + index) % 2 ** 32, words };
      const url = new URL("../fixtures/scan-writer.ts", import.meta.url);
      return { thread: new Worker(url, { workerData }), words };
    });
  }

  #place(kind: "shared" | "file", { name, sizeBytes }: BlockAnnouncement): RamPlace {
    if (kind === "shared") return { kind, buffer: new SharedArrayBuffer(sizeBytes) };
    const path = join(this.#folder, name);
    writeFileSync(path, "");
    truncateSync(path, sizeBytes);
    return { kind, path, offset: 0 };
  }

  /** Returns when every writer has written. */
  async start(): Promise<void> {
    while (this.#writers.some(({ words }) => Atomics.load(words, 3) === 0)) {
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Writes so far. */
  get writes(): number {
    return this.#writers.reduce((sum, { words }) => sum + Atomics.load(words, 3), 0);
  }

  startDirtyLog: SourceHost["startDirtyLog"] = async () =>
    this.blocks.map(({ name }) => ({ kind: "scan", block: name }) as const);

  async stopDirtyLog(): Promise<void> {}

  async pause(): Promise<void> {
    for (const { words } of this.#writers) Atomics.store(words, 0, 1);
    for (const { words } of this.#writers) {
      const waiting = Atomics.waitAsync(words, 1, 0);
      if (waiting.async) await waiting.value;
    }
  }

  async resume(): Promise<void> {
    for (const { words } of this.#writers) {
      Atomics.store(words, 0, 0);
      Atomics.notify(words, 0);
    }
  }

  saveDevices: SourceHost["saveDevices"] = async () => [];

  /** Where it may arrive: files beside its own. */
  destination(): DestinationHost {
    const files = this.blocks.map(({ name }) => ({ name, path: this.#arrivalOf(name), offset: 0 }));
    return fileGuestDestination(files);
  }

  /** The first byte that is another at the destination, in words, or null. */
  difference(): string | null {
    for (const { name, place, sizeBytes } of this.blocks) {
      const ours =
        place.kind === "file" ? readFileSync(place.path) : Buffer.from(place.buffer, 0, sizeBytes);
      const theirs = readFileSync(this.#arrivalOf(name));
      if (Buffer.compare(ours, theirs) === 0) continue;
      const at = ours.findIndex((byte, index) => byte !== theirs[index]);
      return `block "${name}" of ${ours.length} and ${theirs.length} bytes differs at byte ${at}`;
    }
    return null;
  }

  #arrivalOf(name: string): string {
    return join(this.#folder, `${name}.arrived`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { words } of this.#writers) Atomics.store(words, 2, 1);
    await this.resume();
    await Promise.all(this.#writers.map(({ thread }) => thread.terminate()));
    rmSync(this.#folder, { recursive: true });
  }
}
