import type { SourceHost } from "../engine/host.ts";
import { PARAMETERS, type ParameterOptions } from "../engine/parameters.ts";
import type { PostcopySwitch } from "../engine/postcopy-switch.ts";
import { atOnce, ReadyThreads } from "../engine/ready-threads.ts";
import { migrateOut } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { type FileGuestOptions, fileGuest } from "../hosts/file-guest.ts";
import { recordedOut, recordedSource } from "../hosts/handover-record.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { GuestShape } from "../hosts/memory-guest/shape.ts";
import { QemuSource } from "../hosts/qemu.ts";
import { addressProblems } from "./address-problems.ts";
import { checkWhole, runOn } from "./arrived-guest.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import {
  GUEST_FLAGS,
  type GuestChoice,
  guestFeatures,
  hostOf,
  parseGuestFlags,
  WRITER_FLAGS,
  writerFeatures,
  writerOf,
} from "./guest-flags.ts";
import { beginRecord, RECORD_FLAG } from "./handover.ts";
import {
  roomProblems,
  SHAPE_FLAGS,
  shapeOf,
  shapeProblems,
  VCPUS_FLAG,
  withMemoryGuest,
} from "./memory-guest-flags.ts";
import { chooseOutput, type Output } from "./output.ts";
import { switchOnSignal } from "./postcopy-signal.ts";
import { CONTROL_FLAG, controlled } from "./recover.ts";
import { checkUsage, orCancelled, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

export const SEND = {
  name: "send",
  summary: "Sends a guest to a destination that listens at ADDRESS.",
  positionals: [{ name: "ADDRESS", meaning: "tcp:HOST:PORT, unix:PATH, fd:N,N… or exec:COMMAND" }],
  flags: {
    ...GUEST_FLAGS,
    ...WRITER_FLAGS,
    ...withMemoryGuest({ vcpus: VCPUS_FLAG, ...SHAPE_FLAGS }),
    record: RECORD_FLAG,
    control: CONTROL_FLAG,
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  // Whether QEMU's guest can be throttled is found out when it is there.
  features: ([address], flags, given) => {
    const host = hostOf(flags);
    return {
      side: "source",
      migration: "live",
      ...guestFeatures(flags, given, host),
      ...writerFeatures(flags, host),
      ...addressFeatures(address),
    };
  },
} as const satisfies Command;

type SendFlags = ReturnType<typeof parseFlags<typeof SEND.flags>>["flags"];

/** `ready` threads are the caller's; without them some are started while the guest is looked for. */
export async function send(argv: readonly string[], ready?: ReadyThreads): Promise<number> {
  const { options, flags, positionals, problems: found } = parseFlags(SEND, argv);
  const output = chooseOutput({ json: flags.json, side: "source" });
  const [address = ""] = positionals;
  try {
    const problems = [...addressProblems(positionals[0]), ...found];
    const guest = parseGuestFlags(flags, problems);
    if (guest.kind === "memory-guest")
      problems.push(...shapeProblems(flags), ...roomProblems(flags, 1));
    checkUsage(problems);
    using postcopy = switchOnSignal();
    const { postcopySwitch } = postcopy;
    const order = { address, guest, flags, options, ready, postcopySwitch };
    return await runMigration(output, (signal) => depart(order, output, signal));
  } catch (error) {
    return tellFailure(output, error);
  }
}

interface Order {
  readonly address: string;
  readonly guest: GuestChoice;
  readonly flags: SendFlags;
  readonly options: ParameterOptions;
  readonly ready: ReadyThreads | undefined;
  readonly postcopySwitch: PostcopySwitch;
}

/** From the guest, which has to be found first, to the report. */
async function depart(
  { address, guest, flags, options, ready, postcopySwitch }: Order,
  output: Output,
  signal: AbortSignal,
): Promise<Report> {
  const record = beginRecord(flags.record, "source");
  await using own = ready === undefined ? threadsFor(options) : null;
  const threads = ready ?? own ?? undefined;
  const opening: Promise<OpenSource> =
    guest.kind === "memory-guest"
      ? runningGuest(shapeOf(flags))
      : openSource(guest, { writer: writerOf(flags), options });
  await using host = await orCancelled(signal, "start", opening);
  for (const note of host.notes ?? []) output.note(note);
  const possible = withoutThrottle(host, options, output);
  const recorded = record === undefined ? host : recordedSource(host, record);
  await using control = await controlled(flags.control, output, postcopySwitch);
  return await recordedOut(record, () =>
    checkedWhereItStays(host, output, () =>
      migrateOut(recorded, address, {
        ...possible,
        ...(threads === undefined ? {} : { threads }),
        signal,
        postcopySwitch,
        recovery: control.recovery,
        onPhase: (phase) => {
          output.phase(phase);
          control.onPhase(phase);
        },
        onMigration: (id) => record?.identify(id),
        onProgress: (progress) => output.progress(progress),
      }),
    ),
  );
}

function threadsFor({ channels = PARAMETERS.channels.default }: ParameterOptions): ReadyThreads {
  return new ReadyThreads("source", atOnce(channels), { isForOne: true });
}

interface OpenSource extends SourceHost, AsyncDisposable {
  /** Why it has no `throttle`, where that was wanted. */
  readonly notThrottled?: string;
  readonly notes?: readonly string[];
}

async function runningGuest(shape: GuestShape): Promise<MemoryGuest> {
  const guest = await MemoryGuest.create(shape);
  await guest.run();
  return guest;
}

/** As `migrate`. A guest that can check itself does so where it runs on after a failure, too. */
async function checkedWhereItStays(
  host: SourceHost,
  output: Output,
  migrate: () => Promise<Report>,
): Promise<Report> {
  try {
    return await migrate();
  } catch (error) {
    if (host instanceof MemoryGuest && host.running) {
      checkWhole(await runOn(host, { forMs: 0 }));
      output.note("the guest ran on here; every page was checked");
    }
    throw error;
  }
}

async function openSource(
  guest: Exclude<GuestChoice, { kind: "memory-guest" }>,
  { writer, options }: { writer: FileGuestOptions; options: ParameterOptions },
): Promise<OpenSource> {
  if (guest.kind === "files") {
    return { ...fileGuest(guest.files, writer), async [Symbol.asyncDispose]() {} };
  }
  return await QemuSource.open(guest.path, { throttle: options.autoConverge === true });
}

/** A guest that cannot be slowed down may still move: so it is said, and tried without. */
function withoutThrottle(
  host: OpenSource,
  options: ParameterOptions,
  output: Output,
): ParameterOptions {
  if (host.notThrottled === undefined) return options;
  output.note(`the guest is not throttled: ${host.notThrottled}`);
  const {
    autoConverge: _autoConverge,
    throttleInitialPercent: _initial,
    throttleIncrementPercent: _increment,
    throttleMaxPercent: _max,
    ...others
  } = options;
  return others;
}
