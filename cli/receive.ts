import { formatMs } from "../base/units.ts";
import { type MigrateInOptions, migrateIn } from "../engine/destination.ts";
import type { DestinationHost } from "../engine/host.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { Report } from "../engine/statistics.ts";
import { fileGuestDestination } from "../hosts/file-guest.ts";
import { recordedDestination, recordedIn } from "../hosts/handover-record.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import type { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { QemuDestination } from "../hosts/qemu.ts";
import { addressProblems } from "./address-problems.ts";
import { checkWhole, runOn } from "./arrived-guest.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import {
  GUEST_FLAGS,
  type GuestChoice,
  guestFeatures,
  hostOf,
  parseGuestFlags,
} from "./guest-flags.ts";
import { beginRecord, RECORD_FLAG } from "./handover.ts";
import { RUN_FOR_FLAG, VCPUS_FLAG, withMemoryGuest } from "./memory-guest-flags.ts";
import { chooseOutput, type Output } from "./output.ts";
import { CONTROL_FLAG, controlled } from "./recover.ts";
import { checkUsage, orCancelled, runMigration, tellFailure, unlessInterrupted } from "./run.ts";
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
    ...withMemoryGuest({
      vcpus: { ...VCPUS_FLAG, meaning: "How many vCPUs are made ready for the guest." },
      "run-for": RUN_FOR_FLAG,
    }),
    record: RECORD_FLAG,
    control: CONTROL_FLAG,
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  features: ([address], flags, given) => ({
    side: "destination",
    migration: "live",
    ...guestFeatures(flags, given, hostOf(flags)),
    ...addressFeatures(address),
  }),
} as const satisfies Command;

type ReceiveFlags = ReturnType<typeof parseFlags<typeof RECEIVE.flags>>["flags"];

export async function receive(argv: readonly string[]): Promise<number> {
  const { options, flags, positionals, problems: found } = parseFlags(RECEIVE, argv);
  const output = chooseOutput({ json: flags.json, side: "destination" });
  const [address = ""] = positionals;
  try {
    const problems = [...addressProblems(positionals[0]), ...found];
    const guest = parseGuestFlags(flags, problems);
    checkUsage(problems);
    const order = { address, guest, flags, options };
    return await runMigration(output, (signal) => arrive(order, output, signal));
  } catch (error) {
    return tellFailure(output, error);
  }
}

interface Order {
  readonly address: string;
  readonly guest: GuestChoice;
  readonly flags: ReceiveFlags;
  readonly options: ParameterOptions;
}

/** From the host, which has to be found first, to the report on a guest that runs here. */
async function arrive(
  { address, guest, flags, options }: Order,
  output: Output,
  signal: AbortSignal,
): Promise<Report> {
  await using host = await orCancelled(signal, "start", openDestination(guest, flags.vcpus));
  for (const note of host.notes ?? []) output.note(note);
  await using control = await controlled(flags.control, output);
  // Last: from here on a source may come, and what fails before has decided nothing.
  const record = beginRecord(flags.record, "destination");
  const recorded = record === undefined ? host : recordedDestination(host, record);
  const report = await recordedIn(record, () =>
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
  );
  if (!(host instanceof MemoryGuestDestination)) return report;
  return { ...report, verified: await isWhole(host.guest, flags["run-for"], output) };
}

/** Lets a guest that has arrived run on, and checks it. Throws INTERNAL where it is damaged. */
async function isWhole(guest: MemoryGuest, runForMs: number, output: Output): Promise<true> {
  output.note(`the guest runs here for ${formatMs(runForMs)} and is then checked`);
  // An interrupt that came before was of the migration, and too late for it.
  const verdict = await unlessInterrupted(runOn(guest, { forMs: runForMs }), "verify");
  checkWhole(verdict);
  output.note(`it wrote ${verdict.writtenPages} pages here; every page was checked`);
  return true;
}

interface OpenDestination extends DestinationHost, AsyncDisposable {
  readonly notes?: readonly string[];
}

async function openDestination(guest: GuestChoice, vcpuThreads: number): Promise<OpenDestination> {
  if (guest.kind === "qemu") return await QemuDestination.open(guest.path);
  if (guest.kind === "memory-guest") {
    return new MemoryGuestDestination({ vcpuThreads, limitBytes: process.availableMemory() });
  }
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
