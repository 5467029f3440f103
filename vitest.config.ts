import { defineConfig } from "vitest/config";

/**
 * `fast` needs nothing but Node; `real` needs QEMU, a kernel and minutes, and runs in `.ci/run`.
 * Two files at a time: the tests start processes and threads of their own.
 */
export default defineConfig({
  test: {
    maxWorkers: 2,
    setupFiles: ["./test/harness/keep-parser.ts"],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    projects: [
      {
        extends: true,
        test: { name: "fast", include: ["test/**/*.test.ts"], exclude: ["test/real/**"] },
      },
      {
        extends: true,
        test: {
          name: "real",
          include: ["test/real/**/*.test.ts"],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
