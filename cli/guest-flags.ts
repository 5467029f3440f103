import type { FileGuestOptions, MemoryFile } from "../hosts/file-guest.ts";
import type { CommandFlag, CommandFlags } from "./flags.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";

const QEMU_FLAG = {
  value: "text",
  placeholder: "QMP_SOCKET",
  meaning:
    "A guest of QEMU instead of files: the unix socket of its monitor (-qmp unix:PATH,server=on,wait=off).",
} as const satisfies CommandFlag;

/** How a command is told which guest it moves. */
export const GUEST_FLAGS = { memory: MEMORY_FLAG, qemu: QEMU_FLAG } as const;

/** How a source is told who writes the files, and how he is stopped. */
export const WRITER_FLAGS = {
  "dirty-log": {
    value: { type: "choice", choices: ["none", "scan"] },
    default: "none",
    meaning:
      "How writes to the memory are found: none, nobody writes it; scan, by reading all of it in every round. With --qemu it is always scan.",
  },
  "pause-command": {
    value: "text",
    placeholder: "COMMAND",
    meaning:
      "With --dirty-log scan: a shell command that stops whoever writes the memory, before it is read for the last time.",
  },
  "resume-command": {
    value: "text",
    placeholder: "COMMAND",
    meaning: "Undoes --pause-command when the migration fails after that.",
  },
} as const satisfies CommandFlags;

/** A guest of QEMU, by its monitor's socket, or RAM in files. */
export type GuestChoice =
  | { readonly kind: "qemu"; readonly path: string }
  | { readonly kind: "files"; readonly files: readonly MemoryFile[] };

interface GivenWriter {
  readonly "dirty-log": "none" | "scan";
  readonly "pause-command": string | undefined;
  readonly "resume-command": string | undefined;
}

/** Which guest it is; what is wrong goes to `problems`. */
export function parseGuestFlags(
  { memory, qemu }: { readonly memory: readonly string[]; readonly qemu: string | undefined },
  problems: string[],
): GuestChoice {
  const isQemu = qemu !== undefined || problems.some((problem) => problem.startsWith("--qemu "));
  if (!isQemu) return { kind: "files", files: parseMemoryFlags(memory, problems) };
  if (memory.length > 0) {
    problems.push("--memory and --qemu exclude each other: QEMU says itself where its RAM is");
  }
  return { kind: "qemu", path: qemu ?? "" };
}

/** How the files are written; what is wrong goes to `problems`. */
export function parseWriterFlags(
  flags: GivenWriter,
  guest: GuestChoice,
  problems: string[],
): FileGuestOptions {
  const { "pause-command": pause, "resume-command": resume, "dirty-log": dirtyLog } = flags;
  if (pause === undefined && resume === undefined) return { dirtyLog };
  if (guest.kind === "qemu") {
    problems.push(
      "--pause-command and --resume-command are for --memory: QEMU stops its own guest",
    );
  } else if (dirtyLog === "none") {
    problems.push("--pause-command and --resume-command need --dirty-log scan");
  }
  if (pause === undefined || resume === undefined) {
    problems.push("--pause-command and --resume-command need each other: a failure undoes a pause");
    return { dirtyLog };
  }
  return { dirtyLog, commands: { pause, resume } };
}
