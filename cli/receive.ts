import { type MigrateInOptions, migrateIn } from "../engine/destination.ts";
import type { DestinationHost } from "../engine/host.ts";
import type { Report } from "../engine/statistics.ts";
import { fileGuestDestination } from "../hosts/file-guest.ts";
import { recordedDestination, recordedIn } from "../hosts/handover-record.ts";
import { QemuDestination } from "../hosts/qemu.ts";
import { addressProblems } from "./address-problems.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import {
  GUEST_FLAGS,
  type GuestChoice,
  guestFeatures,
  hostOf,
  parseGuestFlags,
} from "./guest-flags.ts";
import { beginRecord, RECORD_FLAG } from "./handover.ts";
import { chooseOutput } from "./output.ts";
import { CONTROL_FLAG, controlled } from "./recover.ts";
import { checkUsage, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { explainedListenFailure } from "./socket-path.ts";

export const RECEIVE = {
  name: "receive",
  summary: "Waits at ADDRESS for a source and takes its guest in.",
  positionals: [
    { name: "ADDRESS", meaning: "tcp:HOST:PORT (port 0: any), unix:PATH, fd:N,N… or exec:COMMAND" },
  ],
  flags: {
    ...GUEST_FLAGS,
    record: RECORD_FLAG,
    control: CONTROL_FLAG,
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  features: ([address], flags) => ({
    side: "destination",
    migration: "live",
    ...guestFeatures(flags, hostOf(flags)),
    ...addressFeatures(address),
  }),
} as const satisfies Command;

export async function receive(argv: readonly string[]): Promise<number> {
  const { options, flags, positionals, problems: found } = parseFlags(RECEIVE, argv);
  const output = chooseOutput({ json: flags.json, side: "destination" });
  const [address = ""] = positionals;
  try {
    const problems = [...addressProblems(positionals[0]), ...found];
    const guest = parseGuestFlags(flags, problems);
    checkUsage(problems);
    await using host = await openDestination(guest);
    for (const note of host.notes ?? []) output.note(note);
    await using control = await controlled(flags.control, output);
    // Last: from here on a source may come, and what fails before has decided nothing.
    const record = beginRecord(flags.record, "destination");
    const recorded = record === undefined ? host : recordedDestination(host, record);
    return await runMigration(output, (signal) =>
      recordedIn(record, () =>
        migrateInto(recorded, address, {
          ...options,
          signal,
          onListening: (actual) => output.listening(actual),
          // Where it listens is known a moment later, and says this phase as well.
          onPhase: (phase) => {
            if (phase !== "listen") output.phase(phase);
            control.onPhase(phase);
          },
          recovery: control.recovery,
          onMigration: (id) => record?.identify(id),
          onProgress: (progress) => output.progress(progress),
        }),
      ),
    );
  } catch (error) {
    return tellFailure(output, error);
  }
}

interface OpenDestination extends DestinationHost, AsyncDisposable {
  readonly notes?: readonly string[];
}

async function openDestination(guest: GuestChoice): Promise<OpenDestination> {
  if (guest.kind === "qemu") return await QemuDestination.open(guest.path);
  return { ...fileGuestDestination(guest.files), async [Symbol.asyncDispose]() {} };
}

async function migrateInto(
  host: DestinationHost,
  address: string,
  options: MigrateInOptions,
): Promise<Report> {
  try {
    return await migrateIn(host, address, options);
  } catch (error) {
    throw await explainedListenFailure(error, address);
  }
}
