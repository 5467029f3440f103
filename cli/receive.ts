import { type MigrateInOptions, migrateIn } from "../engine/destination.ts";
import type { Report } from "../engine/statistics.ts";
import { fileGuestDestination, type MemoryFile } from "../hosts/file-guest.ts";
import { addressProblems } from "./address-problems.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";
import { chooseOutput } from "./output.ts";
import { checkUsage, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { explainedListenFailure } from "./socket-path.ts";

export const RECEIVE = {
  name: "receive",
  summary: "Waits at ADDRESS for a source and takes its guest in.",
  positionals: [
    { name: "ADDRESS", meaning: "tcp:HOST:PORT (port 0: any), unix:PATH, fd:N,N… or exec:COMMAND" },
  ],
  flags: { memory: MEMORY_FLAG, json: JSON_FLAG, help: HELP_FLAG },
  parameters: true,
  features: ([address]) => ({
    side: "destination",
    migration: "live",
    ...addressFeatures(address),
  }),
} as const satisfies Command;

export async function receive(argv: readonly string[]): Promise<number> {
  const { options, flags, positionals, problems: found } = parseFlags(RECEIVE, argv);
  const output = chooseOutput({ json: flags.json, side: "destination" });
  const [address = ""] = positionals;
  try {
    const problems = [...addressProblems(positionals[0]), ...found];
    const files = parseMemoryFlags(flags.memory, problems);
    checkUsage(problems);
    return await runMigration(output, (signal) =>
      migrateIntoFiles(files, address, {
        ...options,
        signal,
        onListening: (actual) => output.listening(actual),
        // Where it listens is known a moment later, and says this phase as well.
        onPhase: (phase) => phase !== "listen" && output.phase(phase),
        onProgress: (progress) => output.progress(progress),
      }),
    );
  } catch (error) {
    return tellFailure(output, error);
  }
}

async function migrateIntoFiles(
  files: readonly MemoryFile[],
  address: string,
  options: MigrateInOptions,
): Promise<Report> {
  try {
    return await migrateIn(fileGuestDestination(files), address, options);
  } catch (error) {
    throw await explainedListenFailure(error, address);
  }
}
