/**
 * `npm run build` writes `dist/`, what the published package runs: the same modules with their types
 * stripped and declarations beside them, because Node strips no types inside `node_modules`. The
 * layout is that of the sources, so modules and kernels find each other by the same relative names.
 */
import { spawnSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { KERNEL_FAMILIES, kernelFile } from "./workers/kernels/kernels.ts";

const ROOT = import.meta.dirname;
const TARGET = join(ROOT, "dist");
const COMPILER = join(ROOT, "node_modules/typescript/bin/tsc");

function compile(): number {
  const { status, error } = spawnSync(process.execPath, [COMPILER, "-p", "tsconfig.build.json"], {
    cwd: ROOT,
    stdio: "inherit",
  });
  if (error !== undefined) throw error;
  return status ?? 1;
}

function copyKernels(): void {
  for (const file of KERNEL_FAMILIES.map((family) => fileURLToPath(kernelFile(family)))) {
    copyFileSync(file, join(TARGET, relative(ROOT, file)));
  }
}

// What was deleted or renamed in the sources must not be published once more.
rmSync(TARGET, { recursive: true, force: true });
process.exitCode = compile();
if (process.exitCode === 0) copyKernels();
