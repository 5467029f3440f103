import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { assert } from "../base/assert.ts";
import { within } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { GIB, MIB, MINUTE_MS } from "../base/units.ts";
import { migrateIn } from "../engine/destination.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { migrateOut } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import type { GuestShape, Pattern } from "../hosts/memory-guest/shape.ts";
import { type Command, flagsOf, parseFlags } from "./flags.ts";
import { chooseOutput, type Output } from "./output.ts";
import { checkUsage, runMigration, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";

const PAGE_BYTES = 4096;
const PATTERNS = ["sweep", "stride", "hot"] as const satisfies readonly Pattern[];

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
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
  features: () => ({ migration: "live", throttle: true, address: "tcp" }),
} as const satisfies Command;

type DemoFlags = ReturnType<typeof parseFlags<typeof DEMO.flags>>["flags"];

export async function demo(argv: readonly string[]): Promise<number> {
  const { options, flags, problems: found } = parseFlags(DEMO, argv);
  const output = chooseOutput({ json: flags.json });
  try {
    const problems = [...found];
    if (flags["working-set"] > flags.size) problems.push("--working-set must fit into --size");
    checkUsage(problems);
    if (flags.arrive !== undefined) return await arrive(flags.arrive, flags, options, output);
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
  const guest = await MemoryGuest.create(shapeOf(flags));
  const destination = startDestination(flags, options);
  try {
    await guest.run();
    const address = await destination.address;
    output.note(`a guest runs here and moves to process ${destination.processId} at ${address}`);
    const report = await migrateOut(guest, address, {
      ...options,
      signal,
      onPhase: (phase) => output.phase(phase),
      onProgress: (progress) => output.progress(progress),
    });
    const writtenHere = guest.writtenPages;
    const { problems, writtenPages } = await destination.verdict;
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
    await guest.stop();
    await destination.stop();
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
  const third = 1 / 3;
  return {
    blocks: [{ name: "ram", sizeBytes, pageBytes: PAGE_BYTES }],
    seed: flags.seed,
    content: { zero: third, text: third, random: third },
    vcpus,
  };
}

interface Verdict {
  readonly problems: readonly string[];
  readonly writtenPages: number;
}

/** What the destination says on its standard output beside the usual events. */
type Said =
  | { readonly event: "listening"; readonly address: string }
  | { readonly event: "failed"; readonly failure: { readonly message: string } }
  | ({ readonly event: "verified" } & Verdict);

const START_LIMIT_MS = 30_000;

/** A process of its own, so that the guest really crosses one. */
function startDestination(flags: DemoFlags, options: ParameterOptions) {
  const launcher = process.argv[1];
  assert(launcher !== undefined, "a command was started from a file");
  const own = [
    "--arrive=tcp:127.0.0.1:0",
    `--vcpus=${flags.vcpus}`,
    `--run-for=${flags["run-for"]}ms`,
  ];
  const child = spawn(process.execPath, [launcher, "demo", "--json", ...own, ...flagsOf(options)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const address = Promise.withResolvers<string>();
  const verdict = Promise.withResolvers<Verdict>();
  address.promise.catch(() => {});
  verdict.promise.catch(() => {});
  createInterface(child.stdout).on("line", (text) => {
    const said = JSON.parse(text) as Said;
    if (said.event === "listening") address.resolve(said.address);
    if (said.event === "verified") verdict.resolve(said);
    if (said.event === "failed") verdict.reject(new Error(said.failure.message));
  });
  const ended = Promise.withResolvers<void>();
  child.once("close", () => {
    const gone = new Error("the destination's process ended");
    address.reject(gone);
    verdict.reject(gone);
    ended.resolve();
  });
  const late = (limitMs: number) => () =>
    new Error(`the destination said nothing for ${limitMs} ms`);
  const verdictLimitMs = START_LIMIT_MS + flags["run-for"] + (flags.size / (100 * MIB)) * 1000;
  return {
    processId: child.pid,
    address: within(START_LIMIT_MS, address.promise, late(START_LIMIT_MS)),
    get verdict() {
      return within(verdictLimitMs, verdict.promise, late(verdictLimitMs));
    },
    async stop(): Promise<void> {
      child.kill();
      await ended.promise;
    },
  };
}

/** The child: the guest's second home. It runs on there, and is then checked page by page. */
async function arrive(
  address: string,
  flags: DemoFlags,
  options: ParameterOptions,
  output: Output,
): Promise<number> {
  const host = new MemoryGuestDestination({ vcpuThreads: flags.vcpus });
  const status = await runMigration(output, (signal) =>
    migrateIn(host, address, {
      ...options,
      signal,
      onListening: (actual) => output.listening(actual),
    }),
  );
  if (status !== 0) return status;
  const { guest } = host;
  try {
    const writtenBefore = guest.writtenPages;
    await sleep(flags["run-for"]);
    await guest.pause();
    const problems = await guest.verify();
    const verdict: Verdict = { problems, writtenPages: guest.writtenPages - writtenBefore };
    process.stdout.write(`${JSON.stringify({ event: "verified", ...verdict })}\n`);
    return problems.length === 0 ? 0 : 1;
  } finally {
    await guest.stop();
  }
}
