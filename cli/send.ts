import { migrateOut } from "../engine/source.ts";
import { fileGuest } from "../hosts/file-guest.ts";
import { addressProblems } from "./address-problems.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";
import { chooseOutput } from "./output.ts";
import { checkUsage, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

export const SEND = {
  name: "send",
  summary: "Sends a guest to a destination that listens at ADDRESS.",
  positionals: [{ name: "ADDRESS", meaning: "tcp:HOST:PORT, unix:PATH, fd:N,N… or exec:COMMAND" }],
  flags: {
    memory: MEMORY_FLAG,
    "dirty-log": {
      value: { type: "choice", choices: ["none", "scan"] },
      default: "none",
      meaning:
        "How writes to the memory are found: none, nobody writes it; scan, by reading all of it in every round.",
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
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  features: ([address], { "dirty-log": dirtyLog }) => ({
    side: "source",
    migration: "live",
    throttle: false,
    ...(dirtyLog === "none" || dirtyLog === "scan" ? { dirtyLog } : {}),
    ...addressFeatures(address),
  }),
} as const satisfies Command;

export async function send(argv: readonly string[]): Promise<number> {
  const { options, flags, positionals, problems: found } = parseFlags(SEND, argv);
  const output = chooseOutput({ json: flags.json, side: "source" });
  const [address = ""] = positionals;
  try {
    const problems = [...addressProblems(positionals[0]), ...found];
    const files = parseMemoryFlags(flags.memory, problems);
    const dirtyLog = flags["dirty-log"];
    const commands = commandsOf(flags, problems);
    checkUsage(problems);
    const host = fileGuest(files, { dirtyLog, ...(commands === null ? {} : { commands }) });
    return await runMigration(output, (signal) =>
      migrateOut(host, address, {
        ...options,
        signal,
        onPhase: (phase) => output.phase(phase),
        onProgress: (progress) => output.progress(progress),
      }),
    );
  } catch (error) {
    return tellFailure(output, error);
  }
}

/** The commands that stop a writer and let him go on: both or none, and only where he is expected. */
function commandsOf(
  flags: {
    readonly "dirty-log": "none" | "scan";
    readonly "pause-command": string | undefined;
    readonly "resume-command": string | undefined;
  },
  problems: string[],
): { pause: string; resume: string } | null {
  const { "pause-command": pause, "resume-command": resume, "dirty-log": dirtyLog } = flags;
  if (pause === undefined && resume === undefined) return null;
  if (dirtyLog === "none") {
    problems.push("--pause-command and --resume-command need --dirty-log scan");
  }
  if (pause === undefined || resume === undefined) {
    problems.push("--pause-command and --resume-command need each other: a failure undoes a pause");
    return null;
  }
  return { pause, resume };
}
