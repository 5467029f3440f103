import type { FileGuestOptions, MemoryFile } from "../hosts/file-guest.ts";
import { socketPathProblem } from "./address-problems.ts";
import type { CommandFlag, CommandFlags, FlagValues, GivenFlags } from "./flags.ts";
import type { GuestFeatures } from "./guest-rules.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";
import { MEMORY_GUEST_FLAG, SHAPE_FLAGS } from "./memory-guest-flags.ts";

const QEMU_FLAG = {
  value: "text",
  placeholder: "QMP_SOCKET",
  problemOf: socketPathProblem,
  meaning:
    "A guest of QEMU instead of files: the unix socket of its monitor (-qmp unix:PATH,server=on,wait=off).",
} as const satisfies CommandFlag;

/** How a command is told which guest it moves. */
export const GUEST_FLAGS = {
  memory: MEMORY_FLAG,
  qemu: QEMU_FLAG,
  "memory-guest": MEMORY_GUEST_FLAG,
} as const;

/** How a source is told who writes the files, and how he is stopped. */
export const WRITER_FLAGS = {
  "dirty-log": {
    value: { type: "choice", choices: ["none", "scan"] },
    meaning:
      "How writes to the memory are found: none, nobody writes it; scan, by reading all of it in every round. Default none; with --qemu it is always scan.",
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

/** What is known of a guest by the flags of a command, which are not looked into. */
export function guestFeatures(
  flags: FlagValues,
  given: GivenFlags,
  host: GuestFeatures["host"],
): GuestFeatures {
  return {
    ...(host === undefined ? {} : { host }),
    memory: isGiven(flags["memory"]),
    qemu: isGiven(flags["qemu"]),
    pauseCommand: isGiven(flags["pause-command"]),
    resumeCommand: isGiven(flags["resume-command"]),
    memoryGuest: flags["memory-guest"] === true ? "given" : "left out",
    shape: isOneOf(given, Object.keys(SHAPE_FLAGS)),
    vcpus: isOneOf(given, ["vcpus"]),
    runFor: isOneOf(given, ["run-for"]),
  };
}

/** How writes are found, for the rules. Not said of files, it is that nobody writes them. */
export function writerFeatures(flags: FlagValues, host: GuestFeatures["host"]): GuestFeatures {
  const dirtyLog = flags["dirty-log"] ?? (host === "files" ? "none" : undefined);
  return isDirtyLog(dirtyLog) ? { dirtyLog } : {};
}

type NamedHost = NonNullable<GuestFeatures["host"]>;

/** Which host the flags name: who gives QEMU's means QEMU, and a rule tells what is wrong. */
export function namedHost(flags: FlagValues): NamedHost | undefined {
  if (isGiven(flags["qemu"]) === "given") return "qemu";
  if (flags["memory-guest"] === true) return "memory-guest";
  return isGiven(flags["memory"]) === "given" ? "files" : undefined;
}

/** Which host a command has that cannot do without one. */
export function hostOf(flags: FlagValues): NamedHost {
  return namedHost(flags) ?? "files";
}

function isGiven(value: FlagValues[string]): "given" | "left out" {
  return value === undefined || (Array.isArray(value) && value.length === 0) ? "left out" : "given";
}

function isOneOf(given: GivenFlags, names: readonly string[]): "given" | "left out" {
  return names.some((name) => given.has(name)) ? "given" : "left out";
}

function isDirtyLog(value: unknown): value is "none" | "bitmap" | "scan" {
  return value === "none" || value === "bitmap" || value === "scan";
}

/** A guest of QEMU, by its monitor's socket, multifd's own, or RAM in files. */
export type GuestChoice =
  | { readonly kind: "qemu"; readonly path: string }
  | { readonly kind: "memory-guest" }
  | { readonly kind: "files"; readonly files: readonly MemoryFile[] };

interface GivenWriter {
  readonly "dirty-log": "none" | "scan" | undefined;
  readonly "pause-command": string | undefined;
  readonly "resume-command": string | undefined;
}

/** Which guest it is; what is wrong with how it is told goes to `problems`. */
export function parseGuestFlags(
  flags: {
    readonly memory: readonly string[];
    readonly qemu: string | undefined;
    readonly "memory-guest": boolean;
  },
  problems: string[],
): GuestChoice {
  const { memory, qemu } = flags;
  const isQemu = qemu !== undefined || problems.some((problem) => problem.startsWith("--qemu "));
  if (isQemu) return { kind: "qemu", path: qemu ?? "" };
  if (flags["memory-guest"]) return { kind: "memory-guest" };
  return { kind: "files", files: parseMemoryFlags(memory, problems) };
}

/** How the files are written. Which of these go together is asked of the rules. */
export function writerOf(flags: GivenWriter): FileGuestOptions {
  const {
    "pause-command": pause,
    "resume-command": resume,
    "dirty-log": dirtyLog = "none",
  } = flags;
  if (pause === undefined || resume === undefined) return { dirtyLog };
  return { dirtyLog, commands: { pause, resume } };
}
