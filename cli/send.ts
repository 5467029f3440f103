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
        "How writes to the memory are found: none, nobody writes it; scan, by reading it again and again.",
    },
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  features: ([address]) => ({
    side: "source",
    migration: "live",
    throttle: false,
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
    checkUsage(problems);
    const host = fileGuest(files, { dirtyLog: flags["dirty-log"] });
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
