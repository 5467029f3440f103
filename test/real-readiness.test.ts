import { afterEach, expect, test, vi } from "vitest";
import { decideReadiness } from "./real/requirements.ts";

afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

/** What is decided where `CI` has this value, and what is said about it. */
function decided(ci: string | undefined, missing: readonly string[]) {
  vi.stubEnv("CI", ci);
  const write = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const readiness = decideReadiness("the moon", missing);
  return { ...readiness, said: write.mock.calls.map(([text]) => text) };
}

test.for([undefined, "", "0", "false"])(
  "what is missing is told loudly and skipped where somebody reads it: CI=%s",
  (ci) => {
    const because = " (SKIPPED, missing: a rocket; fuel)";
    expect(decided(ci, ["a rocket", "fuel"])).toEqual({
      missing: ["a rocket", "fuel"],
      isSkipped: true,
      because,
      said: [`\n*** NOT TESTED: the moon${because} ***\n\n`],
    });
  },
);

test.for(["true", "1"])("what is missing is a failure where nobody reads it: CI=%s", (ci) => {
  expect(decided(ci, ["a rocket"])).toEqual({
    missing: ["a rocket"],
    isSkipped: false,
    because: " (missing: a rocket)",
    said: [],
  });
});

test.for([undefined, "true"])("where nothing is missing nothing is said: CI=%s", (ci) => {
  expect(decided(ci, [])).toEqual({ missing: [], isSkipped: false, because: "", said: [] });
});
