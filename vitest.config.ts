import { tmpdir } from "node:os";
import { join } from "node:path";
import { defineConfig } from "vitest/config";

// Half of what the tests cost is the start of processes and threads, which are twice as fast when
// what they import was compiled before. Everything that is started from here has it.
process.env["NODE_COMPILE_CACHE"] ??= join(tmpdir(), "multifd-compile-cache");

/** Whoever looks at a QEMU lifts quotas that killed engines left, here of tests that wait for it. */
const ALONE = ["test/real/qemu-quota.test.ts"];

/** They mostly wait for guests that boot and live for some seconds. */
const REAL = { testTimeout: 300_000, hookTimeout: 300_000, maxWorkers: 3 };

/**
 * `fast` needs nothing but Node; `real` and `real-alone` need QEMU, a kernel and minutes
 * (`npm run test:real`). Few files at a time: the tests start processes and threads of their own.
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
          ...REAL,
          name: "real",
          include: ["test/real/**/*.test.ts"],
          exclude: ALONE,
          // What has other numbers of workers must run at another time.
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: { ...REAL, name: "real-alone", include: ALONE, sequence: { groupOrder: 2 } },
      },
    ],
  },
});
