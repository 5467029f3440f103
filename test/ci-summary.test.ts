import { expect, test } from "vitest";
import { summarize, summaryLine } from "../.ci/summary.ts";

interface Given {
  readonly passed?: number;
  readonly failed?: number;
  readonly pending?: number;
  readonly todo?: number;
  readonly files?: readonly File[];
}

interface File {
  readonly name: string;
  readonly status: string;
  readonly message: string;
  readonly assertionResults: readonly {
    readonly status: string;
    readonly fullName: string;
    readonly failureMessages: readonly string[];
  }[];
}

/** A file with one result, or none where `status` is null. */
function fileWith(status: string | null): File {
  const result = { status: status ?? "", fullName: "a test", failureMessages: ["it is so"] };
  return {
    name: "/a/folder/some.test.ts",
    status: "failed",
    message: "the file is so",
    assertionResults: status === null ? [] : [result],
  };
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
  const files = [fileWith(null), fileWith("pending"), fileWith("failed")];
  const fast = report({ passed: 1, failed: 1, files });
  expect(summaryOf({ "fast.json": fast }).line).toBe("1 passed, 3 failed");
});

test("what failed is told before the last line: the test, or the file, and what it said", () => {
  const files = [fileWith(null), fileWith("failed"), { ...fileWith("passed"), status: "passed" }];
  const { problems } = summaryOf({ "fast.json": report({ passed: 1, failed: 1, files }) });
  expect(problems).toEqual([
    "failed: some.test.ts: the file is so",
    "failed: some.test.ts: a test: it is so",
  ]);
});

test("tests that had not ended when their process died are failures, though their file passed", () => {
  const died = { ...fileWith("pending"), status: "passed" };
  const diedFirst = { ...fileWith(null), status: "passed", name: "/a/folder/other.test.ts" };
  const summary = summaryOf({ "fast.json": report({ passed: 5, files: [died, diedFirst] }) });
  expect(summary).toEqual({
    line: "5 passed, 2 failed",
    problems: [
      "failed: some.test.ts: its process died before 1 had ended",
      "failed: other.test.ts: its process died before 1 had ended",
    ],
  });
});
