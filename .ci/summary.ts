/**
 * `node .ci/summary.ts REPORT…` adds up Vitest's JSON reports and prints one line, the last of CI:
 * `N passed, N failed`, and `, N skipped` where there are any; before it, on standard error, what
 * failed, for whoever sees no more than the end. Exits 1 when something failed, when
 * a report is missing or holds no test, and when one of a report named `real…` was skipped: nobody
 * reads why.
 */
import { readFileSync } from "node:fs";
import { basename } from "node:path";

/** What of a report is looked at. */
interface VitestReport {
  readonly numPassedTests: number;
  readonly numFailedTests: number;
  readonly numPendingTests: number;
  readonly numTodoTests: number;
  readonly testResults: readonly VitestFile[];
}

interface VitestFile {
  readonly name: string;
  readonly status: string;
  readonly message: string;
  readonly assertionResults: readonly {
    readonly status: string;
    readonly fullName: string;
    readonly failureMessages: readonly string[];
  }[];
}

export interface Summary {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  /** Why CI fails, beside what failed. */
  readonly problems: readonly string[];
}

/** `texts` are the reports by their names; a report that was not written is undefined. */
export function summarize(texts: ReadonlyMap<string, string | undefined>): Summary {
  const sum = { passed: 0, failed: 0, skipped: 0 };
  const problems: string[] = [];
  for (const [name, text] of texts) {
    if (text === undefined) {
      sum.failed += 1;
      problems.push(`${name}: the run ended without a report`);
      continue;
    }
    const report = JSON.parse(text) as VitestReport;
    const { passed, failed, skipped } = countsOf(report);
    problems.push(...failuresOf(report));
    sum.passed += passed;
    sum.failed += failed;
    sum.skipped += skipped;
    if (passed + failed === 0) problems.push(`${name}: no test ran`);
    if (skipped > 0 && name.startsWith("real")) problems.push(`${name}: ${skipped} were skipped`);
  }
  if (texts.size === 0) problems.push("there are no reports");
  return { ...sum, problems };
}

function countsOf(report: VitestReport): { passed: number; failed: number; skipped: number } {
  const broken = report.testResults.map((file) => (isBroken(file) ? 1 : lostOf(file)));
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.reduce((sum, count) => sum + count, 0),
    skipped: report.numPendingTests + report.numTodoTests,
  };
}

/** A file that cannot be loaded, or whose hook fails, is a failure without a failed test. */
function isBroken({ status, assertionResults }: VitestFile): boolean {
  return status === "failed" && assertionResults.every((one) => one.status !== "failed");
}

/**
 * How many tests of a file began or waited when its process died. Vitest says such a file has
 * passed, and counts its tests nowhere but in the total; one that died first has no tests at all.
 */
function lostOf({ status, assertionResults }: VitestFile): number {
  if (status !== "failed" && assertionResults.length === 0) return 1;
  return assertionResults.filter((one) => one.status === "pending").length;
}

/** A line or two for each: which test, and how its message begins. */
function failuresOf({ testResults }: VitestReport): string[] {
  return testResults.flatMap((file) => {
    const failed = file.assertionResults.filter(({ status }) => status === "failed");
    const lost = lostOf(file);
    const name = basename(file.name);
    const lines = failed.map(({ fullName, failureMessages }) => {
      return `failed: ${name}: ${fullName}: ${beginningOf(failureMessages[0] ?? "")}`;
    });
    if (isBroken(file)) lines.push(`failed: ${name}: ${beginningOf(file.message)}`);
    else if (lost > 0) lines.push(`failed: ${name}: its process died before ${lost} had ended`);
    return lines;
  });
}

const MESSAGE_LENGTH_MAX = 800;

function beginningOf(message: string): string {
  return message.slice(0, MESSAGE_LENGTH_MAX);
}

export function summaryLine({ passed, failed, skipped }: Summary): string {
  const counts = `${passed} passed, ${failed} failed`;
  return skipped === 0 ? counts : `${counts}, ${skipped} skipped`;
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as { code?: unknown }).code === "ENOENT") return undefined;
    throw error;
  }
}

function main(paths: readonly string[]): void {
  const summary = summarize(new Map(paths.map((path) => [basename(path), read(path)])));
  for (const problem of summary.problems) process.stderr.write(`${problem}\n`);
  process.stdout.write(`${summaryLine(summary)}\n`);
  process.exitCode = summary.failed > 0 || summary.problems.length > 0 ? 1 : 0;
}

if (import.meta.main) main(process.argv.slice(2));
