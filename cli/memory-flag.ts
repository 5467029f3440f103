import { parseSize } from "../base/units.ts";
import type { MemoryFile } from "../hosts/file-guest.ts";
import type { CommandFlag } from "./flags.ts";

export const MEMORY_FLAG = {
  value: "text",
  placeholder: "NAME=file:PATH",
  repeatable: true,
  meaning:
    "A block of RAM in a file, once per block; `,offset=SIZE`, `,size=SIZE` and `,page-size=SIZE` may follow.",
} as const satisfies CommandFlag;

const KEYS: Readonly<Record<string, "offset" | "sizeBytes" | "pageBytes">> = {
  offset: "offset",
  size: "sizeBytes",
  "page-size": "pageBytes",
};

/** The blocks that `--memory` names; what is wrong with them goes to `problems`. */
export function parseMemoryFlags(texts: readonly string[], problems: string[]): MemoryFile[] {
  const files = texts.flatMap((text) => parseMemoryFlag(text, problems) ?? []);
  const isTold = problems.some((problem) => problem.startsWith("--memory "));
  if (texts.length === 0 && !isTold) {
    const others = "--qemu QMP_SOCKET or --memory-guest";
    problems.push(`--memory NAME=file:PATH is needed, once per block, or ${others}`);
  }
  for (const name of twice(files.map((file) => file.name))) {
    problems.push(`--memory names block "${name}" twice`);
  }
  for (const place of twice(files.map(({ path, offset }) => `"${path}" at offset ${offset}`))) {
    problems.push(`--memory puts two blocks in one place: ${place}`);
  }
  return files;
}

function parseMemoryFlag(text: string, problems: string[]): MemoryFile | undefined {
  const match = /^([^=]+)=file:(.+)$/s.exec(text);
  if (match === null) {
    problems.push(`--memory must be NAME=file:PATH: it is "${text}"`);
    return undefined;
  }
  const file: { -readonly [K in keyof MemoryFile]: MemoryFile[K] } = {
    name: match[1] ?? "",
    path: match[2] ?? "",
    offset: 0,
  };
  const given = new Set<string>();
  // Options are taken off the end one by one: a path may hold commas itself.
  for (;;) {
    const option = /^(.+),(offset|size|page-size)=([^,]*)$/s.exec(file.path);
    const key = KEYS[option?.[2] ?? ""];
    if (option === null || key === undefined) return file;
    file.path = option[1] ?? "";
    if (given.has(key)) problems.push(`--memory ${file.name}: ${option[2]} is given twice`);
    given.add(key);
    try {
      file[key] = wholeBytes(option[3] ?? "");
      if (file[key] === 0 && key !== "offset") throw new RangeError("must be more than 0 bytes");
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      problems.push(`--memory ${file.name}: ${option[2]} ${error.message}`);
    }
  }
}

function wholeBytes(text: string): number {
  const bytes = parseSize(text);
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new RangeError(`"${text}" is not a whole number of bytes`);
}

function twice(texts: readonly string[]): Set<string> {
  return new Set(texts.filter((text, index) => texts.indexOf(text) !== index));
}
