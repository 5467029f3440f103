import { setTimeout as sleep } from "node:timers/promises";
import { assert } from "../base/assert.ts";
import { MigrationError } from "../base/errors.ts";
import { formatBytes, GIB, MIB, MINUTE_MS } from "../base/units.ts";
import { migrateIn } from "../engine/destination.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { migrateOut } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { ContentMix, GuestShape, Pattern } from "../hosts/memory-guest/shape.ts";
import { DemoDestination, endWithParent, tellVerdict } from "./demo-process.ts";
import { type Command, flagsOf, parseFlags } from "./flags.ts";
import { chooseOutput, type Output } from "./output.ts";
import { switchOnSignal } from "./postcopy-signal.ts";
import { CONTROL_FLAG, controlled } from "./recover.ts";
import { checkUsage, EXIT, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

const PAGE_BYTES = 4096;
const PATTERNS = ["sweep", "stride", "hot"] as const satisfies readonly Pattern[];

/** What the guest's memory holds at first. */
const CONTENT: ContentMix = { zero: 1 / 3, text: 1 / 3, random: 1 / 3 };

export const DEMO = {
  name: "demo",
  summary:
    "Moves a live guest between two processes on this machine, checks every page and reports.",
  positionals: [],
  flags: {
    size: {
      value: { type: "bytes", min: 16 * MIB, max: 64 * GIB },
      default: 512 * MIB,
      meaning: "The guest's RAM.",
    },
    vcpus: {
      value: { type: "count", min: 1, max: 16 },
      default: 2,
      meaning: "Threads of the guest that write.",
    },
    "working-set": {
      value: { type: "bytes", min: MIB, max: 64 * GIB },
      default: 64 * MIB,
      meaning: "Memory that they keep writing.",
    },
    "dirty-rate": {
      value: { type: "bytesPerSecond", min: 0, max: 64 * GIB },
      default: 100 * MIB,
      meaning: "How fast they do, all together.",
    },
    pattern: {
      value: { type: "choice", choices: PATTERNS },
      default: "sweep",
      meaning: "The order in which they write.",
    },
    "changed-bytes": {
      value: { type: "bytes", min: 8, max: PAGE_BYTES },
      default: 64,
      meaning: "What a write changes in a page.",
    },
    "run-for": {
      value: { type: "milliseconds", min: 0, max: 10 * MINUTE_MS },
      default: 1000,
      meaning: "How long the guest runs on before all of it is checked.",
    },
    seed: {
      value: { type: "count", min: 0, max: 2 ** 32 - 1 },
      default: 1,
      meaning: "What the guest's content grows from.",
    },
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

type DemoFlags = ReturnType<typeof parseFlags<typeof DEMO.flags>>["flags"];

export async function demo(argv: readonly string[]): Promise<number> {
  const { options, flags, problems } = parseFlags(DEMO, argv);
  const { arrive: address, json } = flags;
  const output = chooseOutput({ json, side: address === undefined ? "source" : "destination" });
  try {
    checkUsage([...problems, ...problemsOf(flags)]);
    if (address !== undefined) return await arrive(address, flags, options, output);
    return await runMigration(output, (signal) => depart(flags, options, output, signal));
  } catch (error) {
    return tellFailure(output, error);
  }
}

/** What each flag by itself cannot tell. */
function problemsOf(flags: DemoFlags): string[] {
  const problems: string[] = [];
  if (flags["working-set"] > flags.size) problems.push("--working-set must fit into --size");
  const neededBytes = 2 * flags.size * (1 - CONTENT.zero);
  const freeBytes = process.availableMemory();
  if (flags.arrive === undefined && neededBytes > freeBytes) {
    const [needed, free] = [formatBytes(neededBytes), formatBytes(freeBytes)];
    problems.push(`--size needs about ${needed} for both processes: ${free} are free`);
  }
  return problems;
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
    `--run-for=${flags["run-for"]}ms`,
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
    const { problems, writtenPages } = verdict;
    assert(!guest.running && guest.writtenPages === writtenHere, "a guest that left stays paused");
    if (problems.length > 0) {
      throw new MigrationError("INTERNAL", {
        reason: `the guest was damaged: ${problems.join("; ")}`,
      });
    }
    output.note(
      `it wrote ${writtenHere} pages here and ${writtenPages} there; every page was checked`,
    );
    return { ...report, verified: true };
  } finally {
    await Promise.all([guest.stop(), destination.stop()]);
  }
}

function shapeOf(flags: DemoFlags): GuestShape {
  const sizeBytes = Math.floor(flags.size / PAGE_BYTES) * PAGE_BYTES;
  const pageCount = Math.floor(flags["working-set"] / flags.vcpus / PAGE_BYTES);
  const vcpus = Array.from({ length: flags.vcpus }, (_, index) => ({
    block: "ram",
    firstPage: index * pageCount,
    pageCount,
    pattern: flags.pattern,
    rateBytesPerSecond: Math.round(flags["dirty-rate"] / flags.vcpus),
    changedBytes: flags["changed-bytes"],
  }));
  return {
    blocks: [{ name: "ram", sizeBytes, pageBytes: PAGE_BYTES }],
    seed: flags.seed,
    content: CONTENT,
    vcpus,
  };
}

/** Settles as `work` does, or as CANCELLED as soon as somebody interrupts. */
async function orCancelled<T>(signal: AbortSignal, phase: string, work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const cancel = (): void => reject(new MigrationError("CANCELLED", { phase }));
  signal.addEventListener("abort", cancel);
  if (signal.aborted) cancel();
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener("abort", cancel);
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
    const writtenBefore = guest.writtenPages;
    await sleep(flags["run-for"]);
    await guest.pause();
    const problems = await guest.verify();
    tellVerdict({ problems, writtenPages: guest.writtenPages - writtenBefore });
    return problems.length === 0 ? EXIT.completed : EXIT.failed;
  } finally {
    await guest.stop();
  }
}
