/**
 * `npm run kernels` compiles every family of kernels and writes its `.wasm` beside this file. The
 * compiler is a development dependency: nothing that runs in a migration imports this.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { main } from "assemblyscript/asc";
import { must } from "../../base/assert.ts";
import { KERNEL_FAMILIES, kernelFile } from "./kernels.ts";

const OPTIONS: readonly string[] = [
  "-O3",
  // The memory is the worker's; the stub runtime and no `abort` leave it the only import.
  ...["--importMemory", "--noExportMemory", "--runtime", "stub", "--use", "abort="],
  ...["--enable", "simd", "--enable", "bulk-memory"],
];

/** Compiles one family. The same source gives the same bytes on every machine. */
export async function compileKernel(family: string): Promise<Uint8Array> {
  const entry = `${family}.ts`;
  const source = readFileSync(new URL(`source/${entry}`, import.meta.url), "utf8");
  const written = new Map<string, Uint8Array | string>();

  // All files pass through here, so that no path of this machine can reach the compiler.
  const { error, stderr } = await main([entry, "--outFile", "kernel.wasm", ...OPTIONS], {
    readFile: (name) => (name === entry ? source : null),
    writeFile: (name, contents) => void written.set(name, contents),
    listFiles: () => [],
  });
  if (error !== null) throw new Error(`Cannot compile kernels "${family}": ${stderr}`);

  const wasm = must(written.get("kernel.wasm"), "a compiler without error wrote its output");
  if (typeof wasm === "string") throw new TypeError("Cannot use a kernel that is text");
  return wasm;
}

if (import.meta.main) {
  for (const family of KERNEL_FAMILIES) {
    const wasm = await compileKernel(family);
    writeFileSync(kernelFile(family), wasm);
    process.stdout.write(`${family}.wasm  ${wasm.length} bytes\n`);
  }
}
