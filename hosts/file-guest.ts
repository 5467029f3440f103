import { closeSync, openSync, type Stats, statSync } from "node:fs";
import { open, realpath, rm, stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { Block, BlockAnnouncement } from "../engine/block.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";
import {
  blocksInFilesOf,
  decodeFilesTaken,
  encodeFilesTaken,
  type FilesTaken,
  fileIdentity,
  kernelId,
} from "./files-taken.ts";
import { ShellCommand } from "./shell-command.ts";

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

/** How somebody who writes the files is dealt with. */
export interface FileGuestOptions {
  /** `none`: nobody writes them. `scan`: somebody may, until `pause`. */
  readonly dirtyLog?: "none" | "scan";
  /** Shell commands that stop whoever writes, and let him go on. Without them he is yours to stop. */
  readonly commands?: { readonly pause: string; readonly resume: string };
}

/**
 * A guest whose RAM lies in files: a stopped one, or one that somebody keeps writing. Throws
 * MEMORY_UNUSABLE for files that cannot be read.
 */
export function fileGuest(
  files: readonly MemoryFile[],
  { dirtyLog = "none", commands }: FileGuestOptions = {},
): SourceHost {
  const scans = files.map(({ name }) => ({ kind: "scan", block: name }) as const);
  const pause = commands === undefined ? null : new ShellCommand(commands.pause);
  const resume = commands === undefined ? null : new ShellCommand(commands.resume);
  const blocks = files.map(sourceBlock);
  // What nobody writes may as well be written with itself.
  const description = dirtyLog === "scan" ? encodeFilesTaken(filesOfSource(files)) : "";
  return {
    blocks,
    description,
    dirtyLog,
    startDirtyLog: async () => (dirtyLog === "scan" ? scans : []),
    stopDirtyLog: async () => {},
    pause: async () => await pause?.run(),
    async resume() {
      pause?.end(); // It may still be at it: what stops him now would stop him for good.
      await resume?.run();
    },
    saveDevices: async () => [],
  };
}

function sourceBlock(file: MemoryFile): Block {
  const { name, path, offset, pageBytes = PAGE_BYTES_DEFAULT } = file;
  const fileBytes = sizeAtSource(file);
  const sizeBytes = file.sizeBytes ?? fileBytes - offset;
  if (sizeBytes <= 0 || offset + sizeBytes > fileBytes) {
    throw unusable(file, fileBytes === 0 ? "it is empty" : `it has only ${fileBytes} bytes`);
  }
  try {
    closeSync(openSync(path, "r"));
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
  return { name, sizeBytes, pageBytes, place: { kind: "file", path, offset } };
}

function filesOfSource(files: readonly MemoryFile[]): FilesTaken {
  const identities = files.map((file) => {
    try {
      return [file.name, fileIdentity(statSync(file.path, { bigint: true }))];
    } catch (error) {
      throw asUnusable(file, error);
    }
  });
  return { kernel: kernelId(), files: Object.fromEntries(identities) };
}

function sizeAtSource(file: MemoryFile): number {
  try {
    return sizeIn(file, statSync(file.path));
  } catch (error) {
    if (errnoOf(error) === "ENOENT") throw unusable(file, "it does not exist");
    throw asUnusable(file, error);
  }
}

/**
 * Takes a guest's RAM into files, without waiting for disks in this thread: it creates them, sparse, with the announced size, or takes
 * existing ones of just that size, whose content counts as unknown. Created files are removed again
 * when the attempt fails. A file may hold several blocks, each at its offset.
 */
export function fileGuestDestination(files: readonly MemoryFile[]): DestinationHost {
  const created = new Set<string>();
  const discard = async (): Promise<void> => {
    // All of them, also those that somebody else has removed meanwhile.
    for (const path of created) await rm(path, { force: true });
    created.clear();
  };
  return {
    async prepare(announced, description) {
      await checkNotTaken(files, description);
      try {
        const blocks: Block[] = [];
        for (const placed of await placesOf(files, announced)) {
          blocks.push(await destinationBlock(placed, created));
        }
        return blocks;
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

/** Throws where a file is the source's own, whose writers it would overwrite, by the description. */
async function checkNotTaken(files: readonly MemoryFile[], description: string): Promise<void> {
  if (description === "") return;
  const source = decodeFilesTaken(description);
  if (source === undefined) {
    const problem = "it is more than memory in files: receive it with its own kind of host";
    throw new MigrationError("GUEST_MISMATCH", { problems: [problem] });
  }
  const kernel = kernelId();
  for (const file of files) {
    const identity = await existingIdentityOf(file);
    const own = { kernel, files: identity === null ? {} : { [file.name]: identity } };
    if (blocksInFilesOf(source, own).length === 0) continue;
    throw unusable(file, "it is the source's own file: give the destination another");
  }
}

/** Null where it is not there, or cannot be reached: whoever opens it will tell. */
async function existingIdentityOf({ path }: MemoryFile): Promise<string | null> {
  try {
    return fileIdentity(await stat(path, { bigint: true }));
  } catch {
    return null;
  }
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

async function placesOf(
  files: readonly MemoryFile[],
  announced: readonly BlockAnnouncement[],
): Promise<readonly Placed[]> {
  const wanted = new Map(announced.map((block) => [block.name, block]));
  const known = files.map((file) => ({ file, block: wantedBlock(file, wanted.get(file.name)) }));
  const identities = await Promise.all(files.map(identityOf));
  const found = known.map((span, index) => ({ ...span, identity: identities[index] as string }));
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

async function destinationBlock(placed: Placed, created: Set<string>): Promise<Block> {
  const { file, block, identity, fileEndBytes, isAlone } = placed;
  const { name, path, offset } = file;
  const { sizeBytes } = block;
  const place = { kind: "file", path, offset } as const;
  const pageBytes = file.pageBytes ?? block.pageBytes;
  const fileBytes = await sizeOf(file);
  if (fileBytes === null) {
    await createSparse(file, fileEndBytes);
    created.add(identity);
  } else if (!created.has(identity)) {
    if (isAlone ? fileBytes !== fileEndBytes : fileBytes < fileEndBytes) {
      throw unusable(file, `it has ${fileBytes} bytes and needs ${fileEndBytes}`);
    }
    await checkWritable(file);
  }
  return { name, sizeBytes, pageBytes, place, pristine: created.has(identity) };
}

/** By what a file is known under all of its paths. */
async function identityOf({ path }: MemoryFile): Promise<string> {
  for (const known of [path, dirname(path)]) {
    try {
      return resolve(await realpath(known), known === path ? "" : basename(path));
    } catch {
      // It is not there, or cannot be reached: whoever opens it will tell.
    }
  }
  return resolve(path);
}

async function sizeOf(file: MemoryFile): Promise<number | null> {
  try {
    return sizeIn(file, await stat(file.path));
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    throw asUnusable(file, error);
  }
}

function sizeIn(file: MemoryFile, stats: Stats): number {
  if (!stats.isFile()) throw unusable(file, "it is not a regular file");
  return stats.size;
}

async function createSparse(file: MemoryFile, bytes: number): Promise<void> {
  try {
    const created = await open(file.path, "wx+", 0o600);
    try {
      await created.truncate(bytes);
    } catch (error) {
      await rm(file.path, { force: true });
      throw error;
    } finally {
      await created.close();
    }
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
}

async function checkWritable(file: MemoryFile): Promise<void> {
  try {
    await (await open(file.path, "r+")).close();
  } catch (error) {
    throw unusable(file, reasonOf(error));
  }
}

function asUnusable(file: MemoryFile, error: unknown): MigrationError {
  return error instanceof MigrationError ? error : unusable(file, reasonOf(error));
}

function unusable({ name, path }: MemoryFile, reason: string): MigrationError {
  return new MigrationError("MEMORY_UNUSABLE", { block: name, path, reason });
}
