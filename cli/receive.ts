import { migrateIn } from "../engine/destination.ts";
import { fileGuestDestination } from "../hosts/file-guest.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";
import { chooseOutput } from "./output.ts";
import { checkUsage, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

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
  const output = chooseOutput({ json: flags.json });
  try {
    const problems = [...found];
    const files = parseMemoryFlags(flags.memory, problems);
    checkUsage(problems);
    const [address = ""] = positionals;
    return await runMigration(output, (signal) =>
      migrateIn(fileGuestDestination(files), address, {
        ...options,
        signal,
        onListening: (actual) => output.listening(actual),
        onPhase: (phase) => output.phase(phase),
        onProgress: (progress) => output.progress(progress),
      }),
    );
  } catch (error) {
    return tellFailure(output, error);
  }
}
