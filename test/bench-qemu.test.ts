import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { type Figure, formatRows, rowsOf } from "../bench/qemu/figures.ts";
import { cpuMsOf, cpuMsWithout } from "../bench/qemu/meters.ts";

interface Cost {
  readonly ms: number;
}

const took: Figure<Cost> = { name: "took", unit: "ms", of: ({ ms }) => ms, goal: { atMost: 1 } };
const samples = {
  qemu: [{ ms: 10 }, { ms: 40 }, { ms: 20 }],
  multifd: [{ ms: 15 }, { ms: 10 }, { ms: 30 }],
};

test("engines are compared by medians and by pair, and a goal is of the ratio", () => {
  const [row] = rowsOf([took], samples);
  expect(row).toMatchObject({ qemu: 20, multifd: 15, ratio: 0.75, met: true });
  expect(row?.ratios).toEqual([1.5, 0.25, 1.5]);
});

test("a goal may be of our own figure, whatever QEMU's is", () => {
  const rows = rowsOf<Cost>([{ ...took, goal: { atMost: 14 }, judged: "multifd" }], samples);
  expect(rows[0]?.met).toBe(false);
  expect(formatRows(rows).join("\n")).toContain("<= 14 ms");
});

test("time of threads that do not count is left out", () => {
  const spent = cpuMsOf(process.pid);
  expect(cpuMsWithout(process.pid, [])).toBeGreaterThanOrEqual(spent);
  expect(cpuMsWithout(process.pid, [process.pid])).toBeLessThan(cpuMsOf(process.pid));
});

for (const [program, words] of [
  ["compare.ts", ["--pairs", "0"]],
  ["compare.ts", ["--guests", "windows"]],
  ["live.ts", ["--compression", "lz4"]],
  ["live.ts", ["--size", "1000003B"]],
  ["live.ts", ["--noise", "101"]],
  ["live.ts", ["--warmups", "-1"]],
] as const) {
  test(`${program} ${words.join(" ")} is nonsense and says how it is used, with exit status 2`, async () => {
    const path = fileURLToPath(new URL(`../bench/qemu/${program}`, import.meta.url));
    const failing = promisify(execFile)(process.execPath, [path, ...words]);
    await expect(failing).rejects.toMatchObject({
      code: 2,
      stderr: expect.stringContaining("usage: node bench/qemu/"),
    });
  });
}
