import { assert } from "../base/assert.ts";
import { migrateIn } from "../engine/destination.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { migrateOut } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { checkWhole, runOn } from "./arrived-guest.ts";
import { DemoDestination, endWithParent, tellVerdict } from "./demo-process.ts";
import { type Command, flagsOf, parseFlags } from "./flags.ts";
import {
  RUN_FOR_FLAG,
  roomProblems,
  SHAPE_FLAGS,
  shapeOf,
  shapeProblems,
  VCPUS_FLAG,
} from "./memory-guest-flags.ts";
import { chooseOutput, type Output } from "./output.ts";
import { switchOnSignal } from "./postcopy-signal.ts";
import { CONTROL_FLAG, controlled } from "./recover.ts";
import { checkUsage, EXIT, orCancelled, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

export const DEMO = {
  name: "demo",
  summary:
    "Moves a live guest between two processes on this machine, checks every page and reports.",
  positionals: [],
  flags: {
    ...SHAPE_FLAGS,
    vcpus: VCPUS_FLAG,
    "run-for": RUN_FOR_FLAG,
    arrive: {
      value: "text",
      placeholder: "ADDRESS",
      meaning: "For the demo itself: be the destination.",
    },
    control: CONTROL_FLAG,
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  features: () => ({ host: "memory-guest", migration: "live", address: "tcp" }),
} as const satisfies Command;

/** The guest's two homes. */
const COPIES = 2;

type DemoFlags = ReturnType<typeof parseFlags<typeof DEMO.flags>>["flags"];

export async function demo(argv: readonly string[]): Promise<number> {
  const { options, flags, problems } = parseFlags(DEMO, argv);
  const { arrive: address, json } = flags;
  const output = chooseOutput({ json, side: address === undefined ? "source" : "destination" });
  try {
    const shape = [...shapeProblems(flags), ...roomProblems(flags, COPIES)];
    checkUsage([...problems, ...(address === undefined ? shape : [])]);
    if (address !== undefined) return await arrive(address, flags, options, output);
    return await runMigration(output, (signal) => depart(flags, options, output, signal));
  } catch (error) {
    return tellFailure(output, error);
  }
}

/** The parent: the guest's first home. */
async function depart(
  flags: DemoFlags,
  options: ParameterOptions,
  output: Output,
  signal: AbortSignal,
): Promise<Report> {
  // To fill a large guest takes a while. One that is given up goes with this process.
  const guest = await orCancelled(signal, "start", MemoryGuest.create(shapeOf(flags)));
  const destination = new DemoDestination([
    "--arrive=tcp:127.0.0.1:0",
    `--vcpus=${flags.vcpus}`,
    `--run-for=${flags["run-for"].toFixed(3)}ms`,
    ...flagsOf(options),
  ]);
  try {
    await guest.run();
    const address = await orCancelled(signal, "start", destination.address);
    output.note(`a guest runs here and moves to process ${destination.processId} at ${address}`);
    using postcopy = switchOnSignal();
    await using control = await controlled(flags.control, output, postcopy.postcopySwitch);
    const report = await migrateOut(guest, address, {
      ...options,
      signal,
      postcopySwitch: postcopy.postcopySwitch,
      recovery: control.recovery,
      onPhase: (phase) => {
        output.phase(phase);
        control.onPhase(phase);
      },
      onProgress: (progress) => output.progress(progress),
    });
    const writtenHere = guest.writtenPages;
    const verdict = await orCancelled(signal, "verify", destination.verdict);
    assert(!guest.running && guest.writtenPages === writtenHere, "a guest that left stays paused");
    checkWhole(verdict);
    output.note(
      `it wrote ${writtenHere} pages here and ${verdict.writtenPages} there; every page was checked`,
    );
    return { ...report, verified: true };
  } finally {
    await Promise.all([guest.stop(), destination.stop()]);
  }
}

/** The child: the guest's second home. It runs on there, and is then checked page by page. */
async function arrive(
  address: string,
  flags: DemoFlags,
  options: ParameterOptions,
  output: Output,
): Promise<number> {
  endWithParent();
  const host = new MemoryGuestDestination({ vcpuThreads: flags.vcpus });
  const status = await runMigration(output, (signal) =>
    migrateIn(host, address, {
      ...options,
      signal,
      onListening: (actual) => output.listening(actual),
    }),
  );
  if (status !== EXIT.completed) return status;
  const { guest } = host;
  try {
    const verdict = await runOn(guest, { forMs: flags["run-for"] });
    tellVerdict(verdict);
    return verdict.problems.length === 0 ? EXIT.completed : EXIT.failed;
  } finally {
    await guest.stop();
  }
}
