import { readdirSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { compileKernel } from "../workers/kernels/build.ts";
import { KERNEL_FAMILIES, kernelFile } from "../workers/kernels/kernels.ts";

for (const family of KERNEL_FAMILIES) {
  test(`the committed ${family}.wasm is what its source compiles to`, async () => {
    const compiled = await compileKernel(family);
    expect(Buffer.from(compiled).equals(readFileSync(kernelFile(family)))).toBe(true);
  });

  test(`${family}.wasm imports a memory and nothing else`, () => {
    const kernel = new WebAssembly.Module(readFileSync(kernelFile(family)));
    expect(WebAssembly.Module.imports(kernel)).toEqual([
      { module: "env", name: "memory", kind: "memory" },
    ]);
  });
}

test("a family without a source is refused by name", async () => {
  await expect(compileKernel("absent")).rejects.toThrow("absent");
});

test("every source and every compiled file belongs to a family", () => {
  const named = (folder: string, ending: string) =>
    readdirSync(new URL(`../workers/kernels/${folder}`, import.meta.url))
      .filter((name) => name.endsWith(ending))
      .sort();
  const families = [...KERNEL_FAMILIES].sort();
  expect(named("source", ".ts")).toEqual(families.map((family) => `${family}.ts`));
  expect(named("", ".wasm")).toEqual(families.map((family) => `${family}.wasm`));
});
