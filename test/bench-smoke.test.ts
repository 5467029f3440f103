import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { BENCHMARKS } from "../bench/list.ts";
import { CannotMeasure, isMet, median } from "../bench/measure.ts";
import { formatResult } from "../bench/table.ts";
import { expectFigures, PROMISES } from "./fixtures/benchmarks.ts";

/** What needs QEMU runs small in the suite that has it. */
for (const benchmark of BENCHMARKS.filter(({ suite }) => suite !== "real")) {
  test(`the benchmark ${benchmark.name} does its work and tells figures of it`, async (context) => {
    await expectFigures(benchmark).catch((error: Error) => {
      // Not green: what needs rights that we do not have is told as not run, with the reason.
      if (error instanceof CannotMeasure) context.skip(error.message);
      throw error;
    });
  });
}

for (const benchmark of BENCHMARKS) {
  test(`the benchmark ${benchmark.name} is the same for the suite and for figures but in size`, () => {
    expect(Object.keys(benchmark.real).sort()).toEqual(Object.keys(benchmark.smoke).sort());
  });
}

test("every benchmark that has promised goals is in the list, under a name of its own", () => {
  const names = BENCHMARKS.map(({ name }) => name);
  expect(names).toEqual(expect.arrayContaining(Object.keys(PROMISES)));
  expect(new Set(names).size).toBe(names.length);
});

test("a goal is met at its bound and missed beyond it, and no goal is neither", () => {
  const result = { name: "a", value: 5, unit: "ms" };
  expect(isMet(result)).toBe(null);
  for (const [goal, met] of [
    [{ atLeast: 5 }, true],
    [{ atLeast: 5.1 }, false],
    [{ atMost: 5 }, true],
    [{ atMost: 4.9 }, false],
  ] as const) {
    expect(isMet({ ...result, goal })).toBe(met);
    expect(formatResult({ ...result, goal })).toContain(met ? "met" : "MISS");
  }
});

test("a median is the middle value, or between the two in the middle", () => {
  expect(median([9, 1, 5])).toBe(5);
  expect(median([9, 1, 5, 7])).toBe(6);
  expect(median([3])).toBe(3);
});

const run = fileURLToPath(new URL("../bench/run.ts", import.meta.url));

test("results come as lines of JSON with where, what and how large they were measured", async () => {
  const words = [run, "--smoke", "--json", "kernels", "guestBytes=4194304"];
  const { stdout } = await promisify(execFile)(process.execPath, words);
  const lines = stdout.trim().split("\n");
  expect(lines.length).toBeGreaterThan(1);
  for (const line of lines) {
    expect(JSON.parse(line)).toMatchObject({
      bench: "kernels",
      name: expect.any(String),
      value: expect.any(Number),
      unit: "GB/s",
      parameters: { timeMs: 1, guestBytes: 4 * 2 ** 20 },
      machine: { cores: expect.any(Number), node: process.version },
    });
    expect(JSON.parse(line)).toHaveProperty("commit");
  }
});

test("what this machine cannot measure is said aloud, and is no success", async () => {
  // Without any program in the path there is nothing to make a network with.
  const options = { env: { ...process.env, PATH: "/nowhere" } };
  const words = [run, "--smoke", "delta-link"];
  const failing = promisify(execFile)(process.execPath, words, options);
  await expect(failing).rejects.toMatchObject({
    code: 3,
    stderr: expect.stringMatching(/^NOT MEASURED: delta-link, because .*unshare/),
  });
});

test("a benchmark that has nothing to tell is said aloud, and is no success", async () => {
  const failing = promisify(execFile)(process.execPath, [
    run,
    "--smoke",
    "memory",
    "channelsMax=0",
  ]);
  await expect(failing).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/^NOTHING MEASURED: memory /),
  });
});

for (const words of [["throughputs"], ["kernels", "pages=7"], ["kernels", "timeMs=much"]]) {
  test(`"${words.join(" ")}" is nonsense and says what there is, with exit status 2`, async () => {
    const failing = promisify(execFile)(process.execPath, [run, "--smoke", ...words]);
    await expect(failing).rejects.toMatchObject({
      code: 2,
      stdout: expect.stringContaining("throughput"),
    });
  });
}
