import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { outcomeOf, readExample } from "./fixtures/example.ts";
import { runProgram } from "./fixtures/run-program.ts";
import { runCli } from "./run-cli.ts";

const CHECKOUT = join(import.meta.dirname, "..");
const COMPILER = join(CHECKOUT, "node_modules/typescript/bin/tsc");
const TYPES = join(CHECKOUT, "node_modules/@types");

/** Building takes a second, an install from npm's cache a few; a registry may be slow. */
const INSTALL_LIMIT_MS = 180_000;
const RUN_LIMIT_MS = 60_000;

/** What is in a checkout and not of the sources. */
const NOT_COPIED = new Set(["node_modules", "dist", ".git", ".cache"]);

let folder: string;
/** Where somebody installed the package, who has nothing else. */
let home: string;
let files: readonly string[];

/**
 * Packs a copy, so that no `dist/` appears in the checkout while other tests run, and installs the
 * tarball into an empty folder.
 */
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "multifd-package-"));
  const copy = join(folder, "copy");
  home = join(folder, "home");
  await mkdir(home);
  await mkdir(copy);
  for (const name of await readdir(CHECKOUT)) {
    if (NOT_COPIED.has(name) || name.endsWith(".tgz")) continue;
    await cp(join(CHECKOUT, name), join(copy, name), { recursive: true });
  }
  await symlink(join(CHECKOUT, "node_modules"), join(copy, "node_modules"));
  const limitMs = INSTALL_LIMIT_MS;
  const packed = await runProgram("npm", ["pack", "--pack-destination", folder], {
    cwd: copy,
    limitMs,
  });
  const tarball = join(folder, packed.trimEnd().split("\n").at(-1) ?? "");
  const listed = await runProgram("tar", ["-tzf", tarball], { cwd: folder, limitMs });
  files = listed
    .trimEnd()
    .split("\n")
    .map((path) => path.replace(/^package\//, ""));
  await writeFile(join(home, "package.json"), JSON.stringify({ type: "module" }));
  const quiet = ["--no-audit", "--no-fund", "--prefer-offline"];
  await runProgram("npm", ["install", tarball, ...quiet], { cwd: home, limitMs });
}, INSTALL_LIMIT_MS);

afterAll(async () => {
  if (folder !== undefined) await rm(folder, { recursive: true, force: true });
});

test("the package holds what was built, the command and documents, and no sources", () => {
  const roots = new Set(files.map((path) => path.split("/")[0]));
  expect([...roots].sort()).toEqual([
    ...["CHANGELOG.md", "LICENSE", "README.md", "cli", "dist", "docs", "package.json"],
  ]);
  const sources = files.filter((path) => path.endsWith(".ts") && !path.endsWith(".d.ts"));
  expect(sources).toEqual([]);
  expect(files.filter((path) => path.startsWith("cli/"))).toEqual(["cli/multifd.js"]);
  expect(files.filter((path) => path.startsWith("docs/") && !path.endsWith(".md"))).toEqual([]);
  expect(files.filter((path) => /(^|\/)(test|bench)\b/.test(path))).toEqual([]);
});

test("every built module has its declarations, and every kernel is there", async () => {
  const modules = files.filter((path) => path.startsWith("dist/") && path.endsWith(".js"));
  const undeclared = modules.filter((path) => !files.includes(path.replace(/\.js$/, ".d.ts")));
  expect(undeclared).toEqual([]);
  const kernels = (await readdir(join(CHECKOUT, "workers/kernels"))).filter((name) =>
    name.endsWith(".wasm"),
  );
  expect(kernels.length).toBeGreaterThan(0);
  for (const name of kernels) expect(files).toContain(`dist/workers/kernels/${name}`);
});

test("whatever package.json points to is in the package", async () => {
  const text = await readFile(join(home, "node_modules/multifd/package.json"), "utf8");
  const description = JSON.parse(text) as { main: string; types: string; exports: object };
  const targets = Object.values(description.exports).flatMap((entry: unknown) =>
    typeof entry === "string" ? [entry] : publishedTargets(entry as Record<string, string>),
  );
  expect(targets.length).toBeGreaterThan(2);
  for (const target of [description.main, description.types, ...targets]) {
    expect(files).toContain(target.replace(/^\.\//, ""));
  }
});

/** One condition is for work on the sources: it names what only a checkout has. */
function publishedTargets(entry: Readonly<Record<string, string>>): string[] {
  return Object.entries(entry)
    .filter(([condition]) => condition !== "@multifd/source")
    .map(([, target]) => target);
}

test("the installed command moves a live guest and verifies it", async () => {
  const { status, events, stderr } = await runCli(
    [
      ...["demo", "--json", "--size", "32MiB", "--working-set", "4MiB", "--channels", "2"],
      ...["--dirty-rate", "20MiB/s", "--run-for", "100ms"],
    ],
    { program: join(home, "node_modules/.bin/multifd"), cwd: home, limitMs: RUN_LIMIT_MS },
  );
  expect(status, stderr).toBe(0);
  const last = events.at(-1);
  expect(last?.event).toBe("completed");
  expect(last?.["report"]).toMatchObject({ verified: true, guestBytes: 32 * 2 ** 20 });
});

test("the installed command knows its version", async () => {
  const { version } = JSON.parse(await readFile(join(CHECKOUT, "package.json"), "utf8"));
  const program = join(home, "node_modules/.bin/multifd");
  const { status, stdout } = await runCli(["--version"], { program, cwd: home });
  expect(status).toBe(0);
  expect(stdout.trim()).toBe(version);
});

/** Somebody else's program, in plain JavaScript, with a guest of the package. */
const MOVE_GUEST = `
import { migrateIn, migrateOut } from "multifd";
import { MemoryGuest, MemoryGuestDestination } from "multifd/memory-guest";

const vcpu = { block: "ram", firstPage: 0, pageCount: 512, pattern: "stride" };
const guest = await MemoryGuest.create({
  blocks: [{ name: "ram", sizeBytes: 16 * 2 ** 20, pageBytes: 4096 }],
  seed: 1,
  content: { zero: 0.5, text: 0.25, random: 0.25 },
  vcpus: [{ ...vcpu, rateBytesPerSecond: 10 * 2 ** 20, changedBytes: 64 }],
});
await guest.run();
const destination = new MemoryGuestDestination();
const listening = Promise.withResolvers();
const options = { channels: 2, checksum: true };
const arrival = migrateIn(destination, "tcp:127.0.0.1:0", {
  checksum: true,
  onListening: listening.resolve,
});
const report = await migrateOut(guest, await listening.promise, options);
await arrival;
await destination.guest.pause();
const problems = await destination.guest.verify();
await destination.guest.stop();
await guest.stop();
process.stdout.write(JSON.stringify({ problems, guestBytes: report.guestBytes }));
`;

test("a program that imports the installed package moves a guest", async () => {
  await writeFile(join(home, "move.mjs"), MOVE_GUEST);
  const stdout = await runProgram(process.execPath, ["move.mjs"], {
    cwd: home,
    limitMs: RUN_LIMIT_MS,
  });
  expect(JSON.parse(stdout)).toEqual({ problems: [], guestBytes: 16 * 2 ** 20 });
});

test("the example of embedding runs against the installed package", async () => {
  await writeFile(join(home, "example.ts"), readExample());
  const stdout = await runProgram(process.execPath, ["example.ts"], {
    cwd: home,
    limitMs: RUN_LIMIT_MS,
  });
  expect(outcomeOf(stdout).lost).toBe(0);
});

/** Uses every entry, and some types whose names alone would not show that they still fit. */
const USE_TYPES = `
import { FAILURES, LiveParameters, MigrationError, migrateOut, PARAMETERS } from "multifd";
import type { Failure, MigrateOutOptions, Progress, Report, SourceHost } from "multifd";
import type { DestinationHost } from "multifd";
import { fileGuest, fileGuestDestination } from "multifd/file-guest";
import { MemoryGuest, type GuestShape } from "multifd/memory-guest";
import { QemuDestination, QemuSource } from "multifd/qemu-host";

const live = new LiveParameters();
const options: MigrateOutOptions = {
  channels: PARAMETERS.channels.default,
  nonConvergence: "switch-over",
  live,
  onProgress: ({ bytesPerSecond }: Progress) => live.change({ maxBandwidthBytesPerSecond: bytesPerSecond }),
};
export async function move(shape: GuestShape, address: string): Promise<Report | Failure> {
  const hosts: SourceHost[] = [await MemoryGuest.create(shape), fileGuest([]), await QemuSource.open(address)];
  const there: DestinationHost = await QemuDestination.open(address);
  await there.discard();
  fileGuestDestination([{ name: "ram", path: "/dev/shm/ram", offset: 0 }]);
  const [host] = hosts;
  if (host === undefined) throw new Error("there is a host");
  try {
    return await migrateOut(host, address, options);
  } catch (error) {
    if (error instanceof MigrationError && error.remedy === "retry") return error.toJSON();
    throw new Error(FAILURES.INTERNAL.says({ reason: String(error) }));
  }
}
// @ts-expect-error Types are there and not merely anything.
export const wrong: MigrateOutOptions = { channels: "four" };
`;

test("the shipped types suit a strict program, and are checked themselves", async () => {
  const compilerOptions = {
    ...{ target: "esnext", lib: ["esnext"], module: "nodenext", noEmit: true, strict: true },
    ...{ exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true, skipLibCheck: false },
    ...{ types: ["node"], typeRoots: [TYPES] },
  };
  const program = { compilerOptions: { ...compilerOptions }, files: ["example.ts", "types.ts"] };
  await writeFile(join(home, "example.ts"), readExample());
  await writeFile(join(home, "types.ts"), USE_TYPES);
  await writeFile(join(home, "tsconfig.json"), JSON.stringify(program));
  await runProgram(process.execPath, [COMPILER, "-p", "."], { cwd: home, limitMs: RUN_LIMIT_MS });
});
