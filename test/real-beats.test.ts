import { describe, expect, test } from "vitest";
import { problemsOf, readSaid } from "./real/guest/beats.ts";

const BOOT = "SeaBIOS\r\n[    0.1] a kernel speaks\r\nready\r\n";

describe("what a guest says that moved", () => {
  test.for<[string, readonly string[]]>([
    ["not at all", [`${BOOT}beat 1\r\nbeat 2\r\nsweep 1\r\nbeat 3\r\n`]],
    ["between two lines", [`${BOOT}beat 1\r\n`, "beat 2\r\nbeat 3\r\n"]],
    ["in the middle of a word", [`${BOOT}beat 1\r\nbe`, "at 2\r\n"]],
    ["in the middle of a number", [`${BOOT}beat 1\r\nbeat 2\r\nbeat `, "3\r\nsweep 1\r\n"]],
    ["before a line's end", [`${BOOT}beat 1\r`, "\nbeat 2\r\n"]],
    ["twice", [`${BOOT}beat 1\r\n`, "bea", "t 2\r\nbeat 3\r\nbeat"]],
    ["before it was ready", [BOOT.slice(0, 20), `${BOOT.slice(20)}beat 1\r\n`]],
  ])("is what one says that stayed: %s", ([, texts]) => {
    expect(problemsOf(texts)).toEqual([]);
  });

  test.for<[string, readonly string[], string]>([
    ["a beat is missing", [`${BOOT}beat 1\r\n`, "beat 3\r\n"], "beat 3 came where 2 belongs"],
    ["a beat came twice", [`${BOOT}beat 1\r\n`, "beat 1\r\n"], "beat 1 came where 2 belongs"],
    [
      "a later one is missing",
      [`${BOOT}beat 1\r\nbeat 2\r\n`, "beat 4\r\nbeat 5\r\n"],
      "beat 4 came where 3 belongs",
    ],
    ["a byte is missing", [`${BOOT}beat 1\r\nbe`, "t 2\r\n"], 'it said "bet 2"'],
    ["a byte came twice", [`${BOOT}beat 1\r\nbea`, "at 2\r\n"], 'it said "beaat 2"'],
    ["it starts over", [`${BOOT}beat 1\r\nbeat 2\r\n`, `${BOOT}beat 1\r\n`], 'it said "SeaBIOS"'],
    [
      "a sweep is missing",
      [`${BOOT}sweep 1\r\nbeat 1\r\n`, "sweep 3\r\n"],
      "sweep 3 came where 2 belongs",
    ],
    ["its memory is broken", [`${BOOT}BROKEN: page 3\r\n`], "BROKEN: page 3"],
    [
      "its kernel complains",
      [`${BOOT}[ 9.1] BUG: soft lockup\r\n`],
      'it said "[ 9.1] BUG: soft lockup"',
    ],
    ["it never came up", ["Kernel panic\r\n"], "it was never ready"],
  ])("shows that %s", ([, texts, problem]) => {
    expect(problemsOf(texts)).toContain(problem);
  });

  test("counts whole lines only", () => {
    expect(readSaid("ready\r\nbeat 1\r\nbeat 2").beats).toEqual([1]);
  });
});
