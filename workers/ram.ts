import { closeSync, constants, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { assert } from "../base/assert.ts";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";
import { copyShared } from "../base/shared-copy.ts";

/**
 * Where a block's memory is, small enough to hand to any thread. Offsets given to `Ram` count from
 * the block's first byte.
 */
export type RamPlace =
  | { readonly kind: "shared"; readonly buffer: SharedArrayBuffer }
  | { readonly kind: "file"; readonly path: string; readonly offset: number };

export interface RamRegion {
  /** The block's name, for messages. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly place: RamPlace;
}

/** One block's memory as one thread reaches it. Every range must lie inside the block. */
export interface Ram {
  /** Fills `target` from `offset` on. The guest may be writing: the copy may be torn. */
  read(offset: number, target: Uint8Array): void;
  /** Writes `source` at `offset`. Throws MEMORY_FULL when there is no room for it. */
  write(offset: number, source: Uint8Array): void;
  /** The bytes themselves where this thread can address them, else null: use `write`. */
  view(offset: number, bytes: number): Uint8Array | null;
  /** Whether the memory lies in this file, whatever its path leads to by now. */
  isIn(file: { readonly device: bigint; readonly inode: bigint }): boolean;
  close(): void;
}

export function openRam(region: RamRegion, mode: "read" | "write"): Ram {
  return region.place.kind === "shared"
    ? sharedRam(region, region.place.buffer)
    : fileRam(region, region.place.path, region.place.offset, mode);
}

function sharedRam(region: RamRegion, buffer: SharedArrayBuffer): Ram {
  assert(buffer.byteLength >= region.sizeBytes, "a shared block has its whole size");
  const bytes = new Uint8Array(buffer, 0, region.sizeBytes);
  return {
    read(offset, target) {
      checkRange(region, offset, target.length);
      copyShared(target, buffer, offset);
    },
    write(offset, source) {
      checkRange(region, offset, source.length);
      bytes.set(source, offset);
    },
    view(offset, length) {
      checkRange(region, offset, length);
      return bytes.subarray(offset, offset + length);
    },
    isIn: () => false,
    close() {},
  };
}

function fileRam(region: RamRegion, path: string, base: number, mode: "read" | "write"): Ram {
  const fd = openMemoryFile(region, path, mode);
  return {
    read(offset, target) {
      checkRange(region, offset, target.length);
      for (let done = 0; done < target.length; ) {
        const count = attempt(region, path, "read", () =>
          readSync(fd, target, done, target.length - done, base + offset + done),
        );
        if (count === 0) throw failed(region, "read", "the file is shorter than the block");
        done += count;
      }
    },
    write(offset, source) {
      checkRange(region, offset, source.length);
      for (let done = 0; done < source.length; ) {
        done += attempt(region, path, "write", () =>
          writeSync(fd, source, done, source.length - done, base + offset + done),
        );
      }
    },
    view: () => null,
    isIn({ device, inode }) {
      const { dev, ino } = fstatSync(fd, { bigint: true });
      return dev === device && ino === inode;
    },
    close: () => closeSync(fd),
  };
}

function openMemoryFile(region: RamRegion, path: string, mode: "read" | "write"): number {
  try {
    const fd = openSync(path, mode === "read" ? constants.O_RDONLY : constants.O_RDWR);
    assert(fstatSync(fd).size >= 0, "an open file has a size");
    return fd;
  } catch (error) {
    throw new MigrationError(
      "MEMORY_UNUSABLE",
      { block: region.name, path, reason: reasonOf(error) },
      { cause: error },
    );
  }
}

function attempt(region: RamRegion, path: string, action: "read" | "write", call: () => number) {
  try {
    return call();
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "ENOSPC" || errno === "EDQUOT") {
      throw new MigrationError("MEMORY_FULL", { block: region.name, path }, { cause: error });
    }
    throw failed(region, action, reasonOf(error));
  }
}

function failed(region: RamRegion, action: "read" | "write", reason: string): MigrationError {
  return new MigrationError("MEMORY_FAILED", { block: region.name, action, reason });
}

function checkRange(region: RamRegion, offset: number, bytes: number): void {
  assert(offset >= 0 && bytes >= 0, "a range has no negative side");
  assert(offset + bytes <= region.sizeBytes, "a range lies inside its block");
}
