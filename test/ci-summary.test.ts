import { expect, test } from "vitest";
import { summarize, summaryLine } from "../.ci/summary.ts";

interface Given {
  readonly passed?: number;
  readonly failed?: number;
  readonly pending?: number;
  readonly todo?: number;
  readonly files?: readonly { status: string; assertionResults: readonly { status: string }[] }[];
}

/** A report as Vitest writes it, as far as it is read. */
function report({ passed = 0, failed = 0, pending = 0, todo = 0, files = [] }: Given): string {
  return JSON.stringify({
    numPassedTests: passed,
    numFailedTests: failed,
    numPendingTests: pending,
    numTodoTests: todo,
    testResults: files,
  });
}

function summaryOf(reports: Readonly<Record<string, string | undefined>>) {
  const summary = summarize(new Map(Object.entries(reports)));
  return { line: summaryLine(summary), problems: summary.problems };
}

test("the last line adds up all reports", () => {
  const reports = {
    "fast.json": report({ passed: 7, failed: 1 }),
    "real.json": report({ passed: 3 }),
  };
  expect(summaryOf(reports)).toEqual({ line: "10 passed, 1 failed", problems: [] });
});

test("skipped tests are told, and in the real run they are a problem", () => {
  expect(summaryOf({ "fast.json": report({ passed: 1, pending: 2, todo: 1 }) })).toEqual({
    line: "1 passed, 0 failed, 3 skipped",
    problems: [],
  });
  const { problems } = summaryOf({ "real.json": report({ passed: 1, pending: 1 }) });
  expect(problems).toEqual(["real.json: 1 were skipped"]);
});

test("a run without a test, without a report or without any run is a problem", () => {
  expect(summaryOf({ "fast.json": report({}) }).problems).toEqual(["fast.json: no test ran"]);
  const crashed = summaryOf({ "real.json": undefined });
  expect(crashed.line).toBe("0 passed, 1 failed");
  expect(crashed.problems).toHaveLength(1);
  expect(summaryOf({}).problems).toHaveLength(1);
});

test("a file that could not be loaded counts as one failure, a failed test not twice", () => {
  const broken = { status: "failed", assertionResults: [] };
  const hook = { status: "failed", assertionResults: [{ status: "pending" }] };
  const ordinary = { status: "failed", assertionResults: [{ status: "failed" }] };
  const fast = report({ passed: 1, failed: 1, files: [broken, hook, ordinary] });
  expect(summaryOf({ "fast.json": fast }).line).toBe("1 passed, 3 failed");
});
