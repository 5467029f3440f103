import { describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { BENCHMARKS } from "../../bench/list.ts";
import { CannotMeasure } from "../../bench/measure.ts";
import { enclosureProblem } from "../../bench/qemu/enclosure.ts";
import { expectFigures } from "../fixtures/benchmarks.ts";
import { missingCompiler, missingPrograms } from "./programs.ts";
import { decideReadiness, missingRoom } from "./requirements.ts";

const { missing, isSkipped, because } = decideReadiness("benchmarks against QEMU", [
  ...missingPrograms(),
  ...missingCompiler(),
  ...missingRoom(512 * MIB),
]);

const benchmarks = BENCHMARKS.filter(({ suite }) => suite === "real");

test.skipIf(isSkipped)(`this machine can be compared with QEMU on${because}`, () => {
  expect(missing).toEqual([]);
  expect(benchmarks.length).toBeGreaterThan(0);
});

describe.skipIf(missing.length > 0)(`compared with QEMU${because},`, () => {
  // A right that we do not have is no mistake of anybody's: then a benchmark must say so.
  const problem = enclosureProblem();
  if (problem === null) {
    test.for(benchmarks)(
      "the benchmark $name does its work and tells figures",
      async (benchmark) => {
        await expectFigures(benchmark);
      },
    );
  } else {
    process.stderr.write(`\n*** NOT MEASURED: benchmarks against QEMU (${problem}) ***\n\n`);
    test.for(benchmarks)("the benchmark $name says that it cannot measure", async (benchmark) => {
      await expect(expectFigures(benchmark)).rejects.toThrow(CannotMeasure);
    });
  }
});
