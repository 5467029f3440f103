import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { outcomeOf, readExample } from "./fixtures/example.ts";
import { runProgram } from "./fixtures/run-program.ts";

const CHECKOUT = join(import.meta.dirname, "..");
const LINES_MAX = 40;
const LIMIT_MS = 30_000;

/** The package's `exports` name the sources under this condition; without it, what was built. */
const SOURCES = "--conditions=@multifd/source";

test("the example is found only where a page marks just one", () => {
  const block = "```ts example\nrun();\n```\n";
  expect(readExample(`before\n${block}after\n`)).toBe("run();\n");
  expect(() => readExample(block.replace(" example", ""))).toThrow("found 0");
  expect(() => readExample(block + block)).toThrow("found 2");
});

test(`the example of embedding has at most ${LINES_MAX} lines`, () => {
  expect(readExample().trimEnd().split("\n").length).toBeLessThanOrEqual(LINES_MAX);
});

test("the example of embedding moves its guest and loses nothing", async () => {
  const folder = await mkdtemp(join(tmpdir(), "multifd-embedding-"));
  try {
    await mkdir(join(folder, "node_modules"));
    await symlink(CHECKOUT, join(folder, "node_modules/multifd"));
    await writeFile(join(folder, "package.json"), JSON.stringify({ type: "module" }));
    await writeFile(join(folder, "example.ts"), readExample());
    const stdout = await runProgram(process.execPath, [SOURCES, "example.ts"], {
      cwd: folder,
      limitMs: LIMIT_MS,
    });
    const { downtimeMs, left, now, lost } = outcomeOf(stdout);
    expect(lost).toBe(0);
    expect(now).toBeGreaterThanOrEqual(left);
    expect(left).toBeGreaterThan(0);
    expect(downtimeMs).toBeGreaterThan(0);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
