import { type BigIntStats, readFileSync } from "node:fs";

/** In which files a guest's RAM lies, for a destination that must not have the same ones. */
export interface FilesTaken {
  /** Of the running kernel: files can be compared within one only. */
  readonly kernel: string;
  /** Device and inode of each block's file. */
  readonly files: Readonly<Record<string, string>>;
}

/** Those blocks of the destination that lie in the source's own files, whatever their paths. */
export function blocksInFilesOf(source: FilesTaken, destination: FilesTaken): string[] {
  if (source.kernel === "" || source.kernel !== destination.kernel) return [];
  const taken = new Set(Object.values(source.files));
  return Object.entries(destination.files)
    .filter(([, file]) => taken.has(file))
    .map(([name]) => name);
}

export function fileIdentity({ dev, ino }: Pick<BigIntStats, "dev" | "ino">): string {
  return `${dev}:${ino}`;
}

/** The same for all processes that could have the very same file, and for no others. */
export function kernelId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "";
  }
}

const KIND = "files";

/** As the description of a guest that is nothing but memory in files. */
export function encodeFilesTaken({ kernel, files }: FilesTaken): string {
  // Without names: those of many blocks would be more than a description may have.
  return JSON.stringify({ kind: KIND, kernel, files: [...new Set(Object.values(files))] });
}

/** Undefined for what is another guest's description: it comes from the other end. */
export function decodeFilesTaken(text: string): FilesTaken | undefined {
  try {
    const { kind, kernel, files } = JSON.parse(text) as Record<string, unknown>;
    if (kind !== KIND || typeof kernel !== "string") return undefined;
    if (!Array.isArray(files)) return undefined;
    return { kernel, files: Object.fromEntries(files.map((file, index) => [index, String(file)])) };
  } catch {
    return undefined;
  }
}
