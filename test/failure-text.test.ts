import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { failureText } from "../cli/failure-text.ts";

test("what the other host named cannot steer the terminal", () => {
  const facts = { block: "ram\u001b[2J\u0007", problem: "the\rsource lacks it\u009b1m" };
  const text = failureText(new MigrationError("BLOCK_MISMATCH", facts, { at: "destination" }));
  expect(text.split("\n")[0]).toBe(
    'BLOCK_MISMATCH (at the destination): Cannot agree on block "ram?[2J?": the?source lacks it?1m',
  );
});

test("several problems have a line each", () => {
  const problems = ["the first thing", "the second thing"];
  const text = failureText(new MigrationError("CONFIGURATION_INVALID", { problems }));
  expect(text.split("\n").slice(1, 3)).toEqual(["  the first thing", "  the second thing"]);
});

test("what stayed behind of the attempt is told last", () => {
  const lost = new MigrationError("HYPERVISOR_LOST", { reason: "it ended" }, { at: "source" });
  const leftover = "QEMU has ended; start it again.";
  expect(failureText(lost.leaving(leftover))).toBe(`${failureText(lost)}${leftover}\n`);
  expect(failureText(lost.leaving(undefined))).toBe(failureText(lost));
  expect(lost.leaving(leftover).from("destination")).toMatchObject({ leftover, at: "source" });
  const unplaced = new MigrationError("HYPERVISOR_LOST", { reason: "it ended" });
  expect(unplaced.leaving(leftover).from("source")).toMatchObject({ leftover, at: "source" });
});
