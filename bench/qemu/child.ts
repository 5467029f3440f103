import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { MINUTE_MS } from "../../base/units.ts";
import { missingCompiler, missingPrograms } from "../../test/real/programs.ts";
import { atExit } from "../at-exit.ts";
import { CannotMeasure, listed, type Report } from "../measure.ts";
import { enclosureProblem } from "./enclosure.ts";
import type { Row } from "./figures.ts";

/** Of a whole comparison; one that is small ends within a minute. */
const LIMIT_MS = 30 * MINUTE_MS;

const FOLDER = new URL("./", import.meta.url);

/** What is read of the line that a comparison says. */
interface Line {
  readonly compression: string;
  readonly rows: readonly Row[];
}

/**
 * Runs a program of this folder in a process of its own, which encloses itself, and reports what it
 * found as results. Throws CannotMeasure, with what this machine lacks, where that cannot be done.
 */
export async function reportComparison(
  program: "compare.ts" | "live.ts",
  words: readonly string[],
  report: Report,
): Promise<void> {
  const missing = [...missingPrograms(), ...missingCompiler()];
  if (missing.length > 0) throw new CannotMeasure(`missing are ${missing.join(", ")}`);
  const problem = enclosureProblem();
  if (problem !== null) throw new CannotMeasure(`nothing can be enclosed: ${problem}`);
  for (const line of (await outputOf(program, words)).trim().split("\n")) {
    const { compression, rows } = JSON.parse(line) as Line;
    for (const row of rows) report(resultOf(row, compression));
  }
}

function resultOf({ name, unit, judged, goal, ...row }: Row, compression: string) {
  const isRatio = judged === "ratio";
  const medians = `QEMU ${row.qemu.toFixed(2)}, multifd ${row.multifd.toFixed(2)} ${unit}`;
  return {
    name: `${compression}: ${name}${isRatio ? " / QEMU's" : ""}`,
    value: isRatio ? row.ratio : row.multifd,
    unit: isRatio ? "" : unit,
    detail: `${medians}; by pair ${listed(row.ratios)}`,
    ...(goal && { goal }),
  };
}

async function outputOf(program: string, words: readonly string[]): Promise<string> {
  const path = fileURLToPath(new URL(program, FOLDER));
  const child = spawn(process.execPath, [path, ...words, "--json"], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  // It takes all that is enclosed along, for which it must hear of it: SIGKILL would leave that.
  const end = (): void => void child.kill("SIGTERM");
  using _watch = atExit(end);
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    end();
    late.reject(new Error(`${program} was not done after ${LIMIT_MS / MINUTE_MS} minutes`));
  }, LIMIT_MS);
  try {
    const ended = Promise.all([text(child.stdout), text(child.stderr), once(child, "close")]);
    const [output, complaints, [status]] = await Promise.race([ended, late.promise]);
    if (status !== 0) throw new Error(`${program} ended with ${status}: ${complaints}`);
    return output;
  } finally {
    clearTimeout(timer);
  }
}
