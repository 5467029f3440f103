import { expect, test } from "vitest";
import { importsOf, ownFiles, resolveFrom, textOf, threadsOf } from "./fixtures/source-files.ts";

/** From the roof down; a file imports its own floor and lower ones. Nothing imports tests. */
const FLOORS = ["cli", "hosts", "engine", "workers", "channels", "base"];

/** What this test needs to know of package.json. */
interface Description {
  readonly dependencies: Readonly<Record<string, string>>;
  readonly exports: Readonly<Record<string, string | Readonly<Record<string, string>>>>;
}
const description = JSON.parse(textOf("package.json")) as Description;

/** What embedders import, in the sources. */
const ENTRIES = Object.values(description.exports).flatMap((entry) =>
  typeof entry === "string" ? [] : [entry["@multifd/source"]?.replace(/^\.\//, "") ?? ""],
);

/** From where everything that runs is reached: the command, and what embedders import. */
const DOORS = ["cli/main.ts", ...ENTRIES];

/** Work on the sources only, and neither published nor imported by what is. */
const TOOLS = ["workers/kernels/build.ts", "workers/kernels/reference.ts"];

/** AssemblyScript: another language, and nothing to import. */
const KERNEL_SOURCES = "workers/kernels/source/";

const files = ownFiles().filter(
  (path) =>
    path.endsWith(".ts") &&
    FLOORS.includes(path.split("/")[0] ?? "") &&
    !path.startsWith(KERNEL_SOURCES),
);

interface Source {
  readonly path: string;
  readonly text: string;
}

/** Everything a file reaches that it may not, each in a sentence. */
function upwardImports({ path, text }: Source): string[] {
  const own = FLOORS.indexOf(path.split("/")[0] ?? "");
  return [...importsOf(text), ...threadsOf(text)]
    .filter((specifier) => specifier.startsWith("."))
    .map((specifier) => resolveFrom(path, specifier))
    .filter((target) => {
      const floor = FLOORS.indexOf(target.split("/")[0] ?? "");
      return floor === -1 || floor < own;
    })
    .map((target) => `${path} imports ${target}`);
}

/** Packages that a file imports without being on the list. */
function foreignPackages({ path, text }: Source, allowed: readonly string[]): string[] {
  return importsOf(text)
    .filter((specifier) => !specifier.startsWith(".") && !specifier.startsWith("node:"))
    .filter((specifier) => !allowed.includes(packageOf(specifier)))
    .map((specifier) => `${path} imports ${specifier}`);
}

function packageOf(specifier: string): string {
  return specifier
    .split("/")
    .slice(0, specifier.startsWith("@") ? 2 : 1)
    .join("/");
}

/** Files that no chain of imports leads to. */
function unreached(sources: readonly Source[], doors: readonly string[]): string[] {
  const textAt = new Map(sources.map(({ path, text }) => [path, text]));
  const reached = new Set<string>();
  const waiting = [...doors];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    const text = textAt.get(path);
    if (text === undefined || reached.has(path)) continue;
    reached.add(path);
    for (const specifier of [...importsOf(text), ...threadsOf(text)]) {
      if (specifier.startsWith(".")) waiting.push(resolveFrom(path, specifier));
    }
  }
  return [...textAt.keys()].filter((path) => !reached.has(path));
}

const sources: readonly Source[] = files.map((path) => ({ path, text: textOf(path) }));

test("imports go down from floor to floor and never up", () => {
  expect(sources.length).toBeGreaterThan(60);
  expect(sources.flatMap(upwardImports)).toEqual([]);
});

test("an upward import is found, whatever form it has", () => {
  const forms = [
    'import { migrateOut } from "../engine/source.ts";',
    'import type { SourceHost } from "../engine/host.ts";',
    'import {\n  type A,\n  type B,\n} from "../engine/host.ts";',
    'import "../engine/pool.ts";',
    'export { Sender } from "../engine/sender.ts";',
    'export * from "../engine/sender.ts";',
    'const lazy = await import("../engine/source.ts");',
    'new Worker(siblingModule("../hosts/memory-guest/vcpu", import.meta.url));',
    'import { Prng } from "../test/prng.ts";',
  ];
  for (const text of forms) {
    expect(upwardImports({ path: "workers/canary.ts", text }), text).toHaveLength(1);
  }
});

test("an import of the own floor or a lower one is no problem", () => {
  const text = 'import { a } from "./b.ts";\nexport type { C } from "../../base/errors.ts";\n';
  expect(upwardImports({ path: "hosts/memory-guest/canary.ts", text })).toEqual([]);
});

const published = Object.keys(description.dependencies);

test("what runs imports only packages that are installed with it", () => {
  const running = sources.filter(({ path }) => !TOOLS.includes(path));
  expect(running.flatMap((source) => foreignPackages(source, published))).toEqual([]);
});

test("an import of a development package is found", () => {
  const text = 'import { main } from "assemblyscript/asc";\nimport { Piscina } from "piscina";\n';
  const found = foreignPackages({ path: "workers/canary.ts", text }, ["piscina"]);
  expect(found).toEqual(["workers/canary.ts imports assemblyscript/asc"]);
});

test("every file is reached from the command or from what embedders import", () => {
  expect(ENTRIES).toContain("engine/multifd.ts");
  expect(unreached(sources, [...DOORS, ...TOOLS])).toEqual([]);
});

test("a file that nothing imports is found", () => {
  const chain: readonly Source[] = [
    { path: "cli/main.ts", text: 'import "../engine/a.ts";' },
    { path: "engine/a.ts", text: 'siblingModule("../workers/b", import.meta.url)' },
    { path: "workers/b.ts", text: "" },
    { path: "base/dead.ts", text: 'import "./clock.ts";' },
  ];
  expect(unreached(chain, ["cli/main.ts"])).toEqual(["base/dead.ts"]);
});
