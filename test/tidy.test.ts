import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { bareCode } from "./fixtures/bare-code.ts";
import { ownFiles, resolveFrom, textOf } from "./fixtures/source-files.ts";

/** Something that a machine can see in a file. Taste is for readers. */
interface Check {
  readonly states: string;
  readonly looksAt: (path: string) => boolean;
  /** Everything that is wrong with one file. */
  readonly problems: (text: string, path: string) => readonly string[];
  /** A file that is wrong: the check must find it, or it checks nothing. */
  readonly sample: { readonly path: string; readonly text: string };
}

const isCode = (path: string): boolean => /\.[jt]s$/.test(path);
const isPage = (path: string): boolean => path.endsWith(".md");
const isText = (path: string): boolean =>
  isCode(path) || isPage(path) || /(\.json|\.gitignore|^\.ci\/\w+)$/.test(path);

/** Lines of code that match, without what stands in comments and strings. */
const inCode =
  (pattern: RegExp) =>
  (text: string): string[] =>
    linesWith(bareCode(text), pattern);

function linesWith(text: string, pattern: RegExp): string[] {
  return text
    .split("\n")
    .flatMap((line, index) => (pattern.test(line) ? [`${index + 1}: ${line.trim()}`] : []));
}

/** Paths that exist only where somebody happened to work. Joined, or this line would be one. */
const MACHINE_PATHS = [
  ["", "work", ""],
  ["", "root", ""],
  ["", "home", ""],
  ["..", "shared", ""],
].map((parts) => parts.join("/"));

const CHECKS: readonly Check[] = [
  {
    states: "nothing has the type any",
    looksAt: isCode,
    problems: inCode(/(?:[:<|&,(]|\bas)\s*any\b(?!\s*[:=(])/),
    sample: { path: "engine/a.ts", text: "const parsed = JSON.parse(text) as any;" },
  },
  {
    states: "no compiler error is silenced",
    // AssemblyScript's decorators are none of TypeScript's.
    looksAt: (path) => isCode(path) && !path.startsWith("workers/kernels/source/"),
    problems: (text) => linesWith(text, /@ts-(?:ignore|nocheck)/),
    sample: { path: "engine/a.ts", text: ["// @ts", "ignore"].join("-") },
  },
  {
    states: "nobody writes to the console: commands write to their output, the engine is silent",
    looksAt: isCode,
    problems: inCode(/\bconsole\b/),
    sample: { path: "engine/a.ts", text: 'console.log("round", round);' },
  },
  {
    states: "what is left to do has a number",
    looksAt: isText,
    problems: (text) => linesWith(text, /\b(?:TOD[O]|FIXM[E])\b(?!\(#\d+\))/),
    sample: { path: "engine/a.ts", text: `// ${"todo".toUpperCase()}: one day` },
  },
  {
    states: "exports have names, but where Piscina or a tool wants a default",
    looksAt: (path) =>
      isCode(path) &&
      !/^(?:workers|bench|test\/harness)\/[\w-]+-worker\.ts$|^vitest\.config\.ts$/.test(path),
    problems: inCode(/^\s*export default\b/),
    sample: { path: "engine/a.ts", text: "export default function run(): void {}" },
  },
  {
    states: "workers do without Buffer",
    looksAt: (path) => path.startsWith("workers/") && isCode(path),
    problems: inCode(/\bBuffer\b/),
    sample: { path: "workers/a.ts", text: "const page = Buffer.alloc(4096);" },
  },
  {
    states: "no test is left out or runs alone",
    looksAt: (path) => path.startsWith("test/") && isCode(path),
    problems: inCode(/\b(?:test|it|describe)\.(?:only|skip|todo)\b/),
    sample: { path: "test/a.test.ts", text: 'test.only("runs", () => {});' },
  },
  {
    states: "files have lower-case names that say what is in them",
    looksAt: (path) => isCode(path) || path.startsWith("docs/"),
    problems: (_text, path) => nameProblems(path),
    sample: { path: "engine/utils.ts", text: "" },
  },
  {
    states: "no path of somebody's machine is named",
    looksAt: isText,
    problems: (text) =>
      MACHINE_PATHS.filter((machinePath) => text.includes(machinePath)).map(
        (machinePath) => `names ${machinePath}`,
      ),
    sample: { path: "docs/a.md", text: `as ${MACHINE_PATHS[0]}main/engine/a.ts says` },
  },
  {
    states: "links between pages lead somewhere",
    looksAt: isPage,
    problems: brokenLinks,
    sample: { path: "docs/a.md", text: "see [the wire](wire-of-another-house.md)" },
  },
  {
    states: "whatever embedders call says what it does and promises",
    looksAt: (path) => path === "engine/multifd.ts" || path === "hosts/memory-guest.ts",
    problems: (text, path) =>
      reexportsOf(text).flatMap(({ name, module }) =>
        isDocumented(textOf(resolveFrom(path, module)), name) ? [] : [`${name} of ${module}`],
      ),
    sample: {
      path: "engine/multifd.ts",
      text: 'export { type Remedy, isFailureCode } from "../base/errors.ts";',
    },
  },
];

/** Names that say nothing, because anything would fit under them. */
const EMPTY_NAMES = new Set(["utils", "util", "helpers", "helper", "common", "manager", "index"]);

function nameProblems(path: string): string[] {
  const name = path.split("/").at(-1) ?? "";
  const stem = name.split(".")[0] ?? "";
  const isLower = /^[a-z0-9]+(?:-[a-z0-9]+)*(?:\.[a-z0-9]+)+$/.test(name);
  return isLower && !EMPTY_NAMES.has(stem) ? [] : [`is called ${name}`];
}

function brokenLinks(text: string, path: string): string[] {
  const targets = [...text.matchAll(/\]\(([^)\s]+)\)/g)].map((match) => match[1] ?? "");
  return targets
    .filter((target) => !/^[a-z]+:/.test(target))
    .filter((target) => !isThere(target, path, text));
}

function isThere(target: string, path: string, text: string): boolean {
  const [file = "", anchor] = target.split("#");
  const page = file === "" ? path : join(dirname(path), file);
  if (file !== "" && !ownFiles().some((own) => own === page || own.startsWith(`${page}/`))) {
    return false;
  }
  return anchor === undefined || anchorsOf(file === "" ? text : textOf(page)).includes(anchor);
}

/** As GitHub makes them from headings. */
function anchorsOf(text: string): string[] {
  return [...text.matchAll(/^#+ (.+)$/gm)].map((match) =>
    (match[1] ?? "")
      .toLowerCase()
      .replace(/[^\w\- ]/g, "")
      .replaceAll(" ", "-"),
  );
}

/** Values that a text passes on, without the types. */
function reexportsOf(text: string): { name: string; module: string }[] {
  return [...text.matchAll(/export \{([^}]*)\} from "([^"]+)"/g)].flatMap((match) =>
    (match[1] ?? "")
      .split(",")
      .map((name) => name.trim())
      .filter((name) => name !== "" && !name.startsWith("type "))
      .map((name) => ({ name, module: match[2] ?? "" })),
  );
}

function isDocumented(text: string, name: string): boolean {
  const kinds = "(?:async )?function|class|const";
  return new RegExp(`\\*/\\nexport (?:${kinds}) ${name}\\b`).test(text);
}

const files = ownFiles();

describe("in every file", () => {
  for (const { states, looksAt, problems } of CHECKS) {
    test(states, () => {
      const found = files
        .filter(looksAt)
        .flatMap((path) => problems(textOf(path), path).map((problem) => `${path} ${problem}`));
      expect(found).toEqual([]);
    });
  }
});

describe("a check finds what it is for", () => {
  for (const { states, looksAt, problems, sample } of CHECKS) {
    test(states, () => {
      expect(looksAt(sample.path)).toBe(true);
      expect(problems(sample.text, sample.path)).not.toEqual([]);
      expect(files.some(looksAt)).toBe(true);
    });
  }
});

interface LockedPackage {
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
}

/** Packages that a lock names as needed and does not have: `npm ci` refuses such a lock. */
function missingFrom(lock: { packages: Readonly<Record<string, LockedPackage>> }): string[] {
  const names = new Set(
    Object.keys(lock.packages).map((path) => path.split("node_modules/").at(-1)),
  );
  return Object.entries(lock.packages).flatMap(([path, { dependencies, optionalDependencies }]) =>
    Object.keys({ ...dependencies, ...optionalDependencies })
      .filter((name) => !names.has(name))
      .map((name) => `${path} needs ${name}`),
  );
}

test("the lock has every package for every platform, whatever registry wrote it", () => {
  expect(missingFrom(JSON.parse(textOf("package-lock.json")))).toEqual([]);
  const broken = {
    "": { dependencies: { a: "1" } },
    "node_modules/a": { dependencies: { b: "1" } },
  };
  expect(missingFrom({ packages: broken })).toEqual(["node_modules/a needs b"]);
});

test("code is bare without comments and what strings hold, line by line", () => {
  const text = "a(\"any\"); // any\n/* any\n any */ b(`any\n1`);\nc('any');";
  expect(bareCode(text)).toBe("a(\"\"); \n\n b(`\n`);\nc('');");
});
