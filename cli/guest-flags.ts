import type { MemoryFile } from "../hosts/file-guest.ts";
import type { CommandFlag } from "./flags.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";

const QEMU_FLAG = {
  value: "text",
  placeholder: "QMP_SOCKET",
  meaning:
    "A guest of QEMU instead of files: the unix socket of its monitor (-qmp unix:PATH,server=on,wait=off).",
} as const satisfies CommandFlag;

/** How a command is told which guest it moves. */
export const GUEST_FLAGS = { memory: MEMORY_FLAG, qemu: QEMU_FLAG } as const;

/** A guest of QEMU, by its monitor's socket, or RAM in files. */
export type GuestChoice =
  | { readonly kind: "qemu"; readonly path: string }
  | { readonly kind: "files"; readonly files: readonly MemoryFile[] };

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
