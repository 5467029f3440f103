import { closeSync, openSync, statfsSync, statSync } from "node:fs";
import { reasonOf } from "../../base/errors.ts";
import { KIB } from "../../base/units.ts";
import type { Block } from "../../engine/block.ts";
import { fileIdentity } from "../files-taken.ts";
import type { Backend } from "./backend.ts";
import { mapsShared, pathOfProcess } from "./process.ts";

/**
 * The guest's page, by which it writes and its memory travels; that of the file may be larger, and
 * another one at the destination.
 */
export const GUEST_PAGE_BYTES = 4 * KIB;

/** `f_type` of hugetlbfs, whose files nobody can write by system calls. */
const HUGETLBFS = 0x958458f6;

/** What makes RAM movable by somebody who is not QEMU, as part of QEMU's command line. */
const WANTED = "memory-backend-file,share=on,mem-path=FILE";

export interface RamQuery {
  /** QEMU's process, where it could be found out. */
  readonly pid: number | undefined;
  /** The source's is read, the destination's written. */
  readonly access: "read" | "write";
}

export interface Ram {
  readonly blocks: readonly Block[];
  /** Which file each block lies in, whatever its path: device and inode. */
  readonly files: ReadonlyMap<string, string>;
  /** What is wrong, each in a sentence that says what to change. The rest holds when it is empty. */
  readonly problems: readonly string[];
}

/** Finds the files of a guest's RAM and checks that they can be moved. */
export function findRam(backends: readonly Backend[], query: RamQuery): Ram {
  const problems: string[] = [];
  const blocks: Block[] = [];
  const files = new Map<string, string>();
  if (backends.length === 0) problems.push(`no RAM was found: start QEMU with ${WANTED}`);
  for (const backend of backends) {
    const found = fileOf(backend, query);
    if (typeof found === "string") {
      problems.push(found);
      continue;
    }
    const { id: name, sizeBytes, offset } = backend;
    const place = { kind: "file", path: found.path, offset } as const;
    blocks.push({ name, sizeBytes, pageBytes: GUEST_PAGE_BYTES, place, pristine: false });
    files.set(name, found.identity);
  }
  return { blocks, files, problems };
}

/** The backend's file, or what is wrong with it. */
function fileOf(
  backend: Backend,
  { pid, access }: RamQuery,
): { readonly path: string; readonly identity: string } | string {
  const { id, isShared, kind, sizeBytes, offset } = backend;
  const named = `RAM backend "${id}"`;
  if (backend.path === undefined) return `${named} (${kind}) has no file: make it a ${WANTED}`;
  if (!isShared) return `${named} is private to QEMU: add share=on to its -object`;
  const path = pathOfProcess(pid, backend.path);
  try {
    const { dev, ino, size, isDirectory } = statOf(path);
    if (isDirectory) return `${named} has a nameless file in "${path}": name a file in mem-path`;
    if (size < offset + sizeBytes) return `${named} lies in "${path}", which is too short`;
    if (pid !== undefined && mapsShared(pid, ino) === false) {
      return `${named} is not in "${path}": that file was replaced since QEMU opened it`;
    }
    if (access === "write" && statfsSync(path).type === HUGETLBFS) {
      return `${named} lies in hugetlbfs, which only QEMU can write: use a file in /dev/shm`;
    }
    closeSync(openSync(path, access === "write" ? "r+" : "r"));
    return { path, identity: fileIdentity({ dev, ino }) };
  } catch (error) {
    return `${named} cannot be opened here: ${reasonOf(error)}`;
  }
}

function statOf(path: string): { dev: bigint; ino: bigint; size: number; isDirectory: boolean } {
  const stat = statSync(path, { bigint: true });
  const { dev, ino } = stat;
  return { dev, ino, size: Number(stat.size), isDirectory: stat.isDirectory() };
}
