import { closeSync, ftruncateSync, openSync, statSync, unlinkSync } from "node:fs";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";

/** RAM of a guest in a file, as `--memory` names it. */
export interface MemoryFile {
  readonly name: string;
  readonly path: string;
  /** Where the block begins in the file. */
  readonly offset: number;
  /** Absent at the source: up to the file's end. At the destination it is what is announced. */
  readonly sizeBytes?: number;
  readonly pageBytes?: number;
}

const PAGE_BYTES_DEFAULT = 4 * KIB;

/**
 * A stopped guest whose RAM lies in files: nobody writes it, so there is no dirty log and nothing
 * to pause. Throws MEMORY_UNUSABLE for files that cannot be read.
 */
export function fileGuest(files: readonly MemoryFile[]): SourceHost {
  return {
    blocks: files.map(sourceBlock),
    startDirtyLog: async () => [],
    stopDirtyLog: async () => {},
    pause: async () => {},
    resume: async () => {},
    saveDevices: async () => [],
  };
}

function sourceBlock(file: MemoryFile): Block {
  const { name, path, offset, pageBytes = PAGE_BYTES_DEFAULT } = file;
  const fileBytes = sizeOf(file);
  if (fileBytes === null) throw unusable(file, "it does not exist");
  const sizeBytes = file.sizeBytes ?? fileBytes - offset;
  if (offset + sizeBytes > fileBytes) throw unusable(file, `it has only ${fileBytes} bytes`);
  return { name, sizeBytes, pageBytes, place: { kind: "file", path, offset } };
}

/**
 * Takes a guest's RAM into files: it creates them, sparse, with the announced size, or takes
 * existing ones of just that size, whose content counts as unknown. Created files are removed again
 * when the attempt fails.
 */
export function fileGuestDestination(files: readonly MemoryFile[]): DestinationHost {
  const created: string[] = [];
  const discard = async (): Promise<void> => {
    for (const path of created.splice(0)) unlinkSync(path);
  };
  return {
    async prepare(announced) {
      const wanted = new Map(announced.map((block) => [block.name, block]));
      try {
        return files.map((file) => destinationBlock(file, wanted.get(file.name), created));
      } catch (error) {
        await discard();
        throw error;
      }
    },
    loadDevices: async () => {},
    resume: async () => {},
    discard,
  };
}

function destinationBlock(
  file: MemoryFile,
  announced: BlockAnnouncement | undefined,
  created: string[],
): Block {
  const { name, path, offset } = file;
  if (announced === undefined) {
    throw new MigrationError("BLOCK_MISMATCH", { block: name, problem: "the source lacks it" });
  }
  const { sizeBytes, pageBytes } = announced;
  const place = { kind: "file", path, offset } as const;
  const endBytes = offset + sizeBytes;
  const fileBytes = sizeOf(file);
  if (fileBytes === null) {
    createSparse(file, endBytes);
    created.push(path);
    return { name, sizeBytes, pageBytes, place, pristine: true };
  }
  if (offset === 0 ? fileBytes !== endBytes : fileBytes < endBytes) {
    throw unusable(file, `it has ${fileBytes} bytes and the block needs ${endBytes}`);
  }
  checkWritable(file);
  return { name, sizeBytes, pageBytes, place, pristine: false };
}

function sizeOf(file: MemoryFile): number | null {
  try {
    const stat = statSync(file.path);
    if (!stat.isFile()) throw unusable(file, "it is not a regular file");
    return stat.size;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    if (error instanceof MigrationError) throw error;
    throw unusable(file, reasonOf(error));
  }
}

function createSparse(file: MemoryFile, bytes: number): void {
  try {
    const fd = openSync(file.path, "wx+", 0o600);
    try {
      ftruncateSync(fd, bytes);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
}

function checkWritable(file: MemoryFile): void {
  try {
    closeSync(openSync(file.path, "r+"));
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
}

function unusable({ name, path }: MemoryFile, reason: string): MigrationError {
  return new MigrationError("MEMORY_UNUSABLE", { block: name, path, reason });
}
