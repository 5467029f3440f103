import type { SourceHost } from "../engine/host.ts";
import { migrateOut } from "../engine/source.ts";
import { fileGuest } from "../hosts/file-guest.ts";
import { QemuSource } from "../hosts/qemu.ts";
import { addressProblems } from "./address-problems.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import { GUEST_FLAGS, type GuestChoice, parseGuestFlags } from "./guest-flags.ts";
import { chooseOutput } from "./output.ts";
import { checkUsage, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

export const SEND = {
  name: "send",
  summary: "Sends a guest to a destination that listens at ADDRESS.",
  positionals: [{ name: "ADDRESS", meaning: "tcp:HOST:PORT, unix:PATH, fd:N,N… or exec:COMMAND" }],
  flags: { ...GUEST_FLAGS, json: JSON_FLAG, help: HELP_FLAG },
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
    const guest = parseGuestFlags(flags, problems);
    checkUsage(problems);
    using host = await openSource(guest);
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

type OpenSource = SourceHost & Disposable;

async function openSource(guest: GuestChoice): Promise<OpenSource> {
  if (guest.kind === "qemu") return await QemuSource.open(guest.path);
  return { ...fileGuest(guest.files), [Symbol.dispose]() {} };
}
