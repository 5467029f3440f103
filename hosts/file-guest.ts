import { closeSync, ftruncateSync, openSync, realpathSync, rmSync, statSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
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
  /** Absent: 4 KiB at the source, at the destination as announced. */
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
  if (sizeBytes <= 0 || offset + sizeBytes > fileBytes) {
    throw unusable(file, fileBytes === 0 ? "it is empty" : `it has only ${fileBytes} bytes`);
  }
  checkOpens(file, "r");
  return { name, sizeBytes, pageBytes, place: { kind: "file", path, offset } };
}

/**
 * Takes a guest's RAM into files: it creates them, sparse, with the announced size, or takes
 * existing ones of just that size, whose content counts as unknown. Created files are removed again
 * when the attempt fails. A file may hold several blocks, each at its offset.
 */
export function fileGuestDestination(files: readonly MemoryFile[]): DestinationHost {
  const created = new Set<string>();
  const discard = async (): Promise<void> => {
    // All of them, also those that somebody else has removed meanwhile.
    for (const path of created) rmSync(path, { force: true });
    created.clear();
  };
  return {
    async prepare(announced, description) {
      if (description !== "") {
        const problem = "it is more than memory in files: receive it with its own kind of host";
        throw new MigrationError("GUEST_MISMATCH", { problems: [problem] });
      }
      try {
        return placesOf(files, announced).map((place) => destinationBlock(place, created));
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

/** A block that is announced, and where in which file it shall lie. */
interface Placed {
  readonly file: MemoryFile;
  readonly block: BlockAnnouncement;
  /** The same for all names of one file. */
  readonly identity: string;
  /** Where the last block of the file ends. */
  readonly fileEndBytes: number;
  /** The file is this block and nothing else. */
  readonly isAlone: boolean;
}

function placesOf(
  files: readonly MemoryFile[],
  announced: readonly BlockAnnouncement[],
): readonly Placed[] {
  const wanted = new Map(announced.map((block) => [block.name, block]));
  const found = files.map((file) => {
    return { file, block: wantedBlock(file, wanted.get(file.name)), identity: identityOf(file) };
  });
  return found.map((place) => {
    const neighbours = found.filter(({ identity }) => identity === place.identity);
    const shared = neighbours.find((other) => other !== place && overlaps(other, place));
    if (shared !== undefined) {
      throw unusable(place.file, `block "${shared.file.name}" lies there, too`);
    }
    const fileEndBytes = Math.max(...neighbours.map(endBytesOf));
    const isAlone = neighbours.length === 1 && place.file.offset === 0;
    return { ...place, fileEndBytes, isAlone };
  });
}

function wantedBlock(file: MemoryFile, block: BlockAnnouncement | undefined): BlockAnnouncement {
  const { name, sizeBytes } = file;
  if (block === undefined) {
    throw new MigrationError("BLOCK_MISMATCH", { block: name, problem: "the source lacks it" });
  }
  if (sizeBytes !== undefined && sizeBytes !== block.sizeBytes) {
    const problem = `it has ${block.sizeBytes} bytes at the source and ${sizeBytes} at the destination`;
    throw new MigrationError("BLOCK_MISMATCH", { block: name, problem });
  }
  return block;
}

type Span = Pick<Placed, "file" | "block">;

function endBytesOf({ file, block }: Span): number {
  return file.offset + block.sizeBytes;
}

function overlaps(one: Span, other: Span): boolean {
  return one.file.offset < endBytesOf(other) && other.file.offset < endBytesOf(one);
}

function destinationBlock(placed: Placed, created: Set<string>): Block {
  const { file, block, identity, fileEndBytes, isAlone } = placed;
  const { name, path, offset } = file;
  const { sizeBytes } = block;
  const place = { kind: "file", path, offset } as const;
  const pageBytes = file.pageBytes ?? block.pageBytes;
  const fileBytes = sizeOf(file);
  if (fileBytes === null) {
    createSparse(file, fileEndBytes);
    created.add(identity);
  } else if (!created.has(identity)) {
    if (isAlone ? fileBytes !== fileEndBytes : fileBytes < fileEndBytes) {
      throw unusable(file, `it has ${fileBytes} bytes and needs ${fileEndBytes}`);
    }
    checkOpens(file, "r+");
  }
  return { name, sizeBytes, pageBytes, place, pristine: created.has(identity) };
}

/** By what a file is known under all of its paths. */
function identityOf({ path }: MemoryFile): string {
  for (const known of [path, dirname(path)]) {
    try {
      return resolve(realpathSync(known), known === path ? "" : basename(path));
    } catch {
      // It is not there, or cannot be reached: whoever opens it will tell.
    }
  }
  return resolve(path);
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
    } catch (error) {
      rmSync(file.path, { force: true });
      throw error;
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
}

function checkOpens(file: MemoryFile, mode: "r" | "r+"): void {
  try {
    closeSync(openSync(file.path, mode));
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
}

function unusable({ name, path }: MemoryFile, reason: string): MigrationError {
  return new MigrationError("MEMORY_UNUSABLE", { block: name, path, reason });
}
