import { execFile } from "node:child_process";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { assert } from "../../base/assert.ts";
import { MIB } from "../../base/units.ts";
import { type ArchiveEntry, FOLDER_MODE, PROGRAM_MODE, writeArchive } from "./archive.ts";
import { requirePrograms } from "./programs.ts";

/** What Vitest says of one file of tests, as its report in JSON has it. */
export interface MachineReport {
  readonly passed: readonly string[];
  /** Each with its first complaint. */
  readonly failed: readonly string[];
  readonly skipped: readonly string[];
}

/** Some 35 s of processor time where it is emulated on an idle machine. */
const RUN_LIMIT_MS = 240_000;
const LIBRARIES_LIMIT_MS = 10_000;

export const MACHINE_MIB = 1536;
const SERIAL_BYTES_MAX = 16 * MIB;
/** Of its last words, in an error. */
const TAIL_CHARACTERS = 2000;

const PROJECT = fileURLToPath(new URL("../..", import.meta.url));
/** Where the machine has the project. */
const HOME = "project";
/** What a test imports, and what tells Vitest how it runs. */
const PARTS = ["base", "engine", "hosts", "test", "workers", "package.json", "vitest.config.ts"];
/** They build, look for faults or are Node itself, which comes as the program that runs this. */
const PACKAGES_LEFT_OUT = [
  ...["@biomejs", "@typescript", "typescript", "assemblyscript", "binaryen", "node"],
];

/**
 * Runs a file of this project's tests in a virtual machine whose kernel has cgroups of version 2
 * and no others, as root, in a cgroup that is given the `cpu` controller. The machine has this
 * very Node, its libraries and the project in memory, and nothing else.
 */
export async function runWithCgroups2(testFile: string): Promise<MachineReport> {
  const { qemuPath, kernelPath, busyboxPath } = requirePrograms();
  const folder = await mkdtemp(join(tmpdir(), "multifd-machine-"));
  try {
    const initramfsPath = join(folder, "initramfs.cpio");
    const reportPath = join(folder, "report.json");
    await writeFile(initramfsPath, writeArchive(await entriesFor(testFile, busyboxPath)));
    const { stdout } = await promisify(execFile)(
      qemuPath,
      [
        ...["-accel", "tcg,thread=multi", "-smp", "2", "-m", `${MACHINE_MIB}M`],
        ...["-kernel", kernelPath, "-initrd", initramfsPath],
        ...["-append", "console=ttyS0 panic=-1 quiet cgroup_no_v1=all", "-no-reboot"],
        ...["-nodefaults", "-no-user-config", "-display", "none"],
        // The kernel has its say on the first line, in the middle of whatever others say there.
        ...["-serial", "stdio", "-serial", `file:${reportPath}`],
      ],
      { timeout: RUN_LIMIT_MS, killSignal: "SIGKILL", maxBuffer: SERIAL_BYTES_MAX },
    );
    return reportIn(await readFile(reportPath, "utf8"), stdout);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Whatever fails here ends the machine without a report, behind the complaint. */
function initOf(testFile: string): string {
  return `#!/bin/busybox sh
set -e
export PATH=/bin HOME=/tmp CI=true NO_COLOR=1
trap 'poweroff -f' EXIT
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/machine
echo +cpu > /sys/fs/cgroup/cgroup.subtree_control
echo $$ > /sys/fs/cgroup/machine/cgroup.procs
cd /${HOME}
node node_modules/vitest/vitest.mjs run --project fast ${testFile} \\
  --reporter=default --reporter=json --outputFile.json=/tmp/report.json || true
cat /tmp/report.json > /dev/ttyS1
`;
}

async function entriesFor(testFile: string, busyboxPath: string): Promise<ArchiveEntry[]> {
  const packages = readdirSync(join(PROJECT, "node_modules"))
    .filter((name) => !PACKAGES_LEFT_OUT.includes(name))
    .map((name) => join("node_modules", name));
  const own = [...PARTS, ...packages].flatMap((part) => filesUnder(join(PROJECT, part)));
  const natives = own.filter((path) => path.endsWith(".node"));
  const libraries = await librariesOf([process.execPath, ...natives]);
  const files = new Map<string, Uint8Array>([
    ["init", Buffer.from(initOf(testFile))],
    ["bin/busybox", readFileSync(busyboxPath)],
    ["bin/node", readFileSync(process.execPath)],
    ...libraries.map((path): [string, Uint8Array] => [path.slice(1), readFileSync(path)]),
    ...own.map((path): [string, Uint8Array] => [
      join(HOME, relative(PROJECT, path)),
      readFileSync(path),
    ]),
  ]);
  const folders = new Set([
    "dev",
    "proc",
    "sys",
    "tmp",
    ...[...files.keys()].flatMap(foldersAbove),
  ]);
  return [
    ...[...folders].sort().map((path) => ({ path, mode: FOLDER_MODE })),
    ...[...files].map(([path, bytes]) => ({ path, mode: PROGRAM_MODE, bytes })),
  ];
}

/** Links are left out; a file is all that is under itself. */
function filesUnder(path: string): string[] {
  if (statSync(path).isFile()) return [path];
  return readdirSync(path, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name));
}

/** Outermost first; none for a file at the top. */
function foldersAbove(path: string): string[] {
  const parts = dirname(path).split(sep);
  return parts
    .map((_, index) => parts.slice(0, index + 1).join(sep))
    .filter((name) => name !== ".");
}

/** Absolute paths of all that the dynamic linker loads for them, and its own. */
async function librariesOf(programs: readonly string[]): Promise<string[]> {
  const limits = { timeout: LIBRARIES_LIMIT_MS };
  const { stdout } = await promisify(execFile)("ldd", [...programs], limits);
  // A tab, then "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)" or "/lib64/ld-linux… (0x…)".
  const found = [...stdout.matchAll(/^\t(?:\S+ => )?(\/\S+) \(0x/gm)];
  return [...new Set(found.map(([, path = ""]) => path))];
}

/** What is read here of https://vitest.dev/guide/reporters#json-reporter. */
interface JsonReport {
  readonly testResults: readonly {
    readonly message?: string;
    readonly assertionResults: readonly {
      readonly fullName: string;
      readonly status: string;
      readonly failureMessages?: readonly string[];
    }[];
  }[];
}

function reportIn(text: string, said: string): MachineReport {
  if (text === "") {
    throw new Error(`The machine ended without a report: ${said.slice(-TAIL_CHARACTERS)}`);
  }
  const { testResults } = JSON.parse(text) as JsonReport;
  const results = testResults.flatMap(({ assertionResults }) => assertionResults);
  assert(results.length > 0, `Vitest found no test: ${testResults[0]?.message}`);
  const named = (status: string) =>
    results.filter((result) => result.status === status).map(({ fullName }) => fullName);
  const passed = named("passed");
  const failed = results
    .filter(({ status }) => status === "failed")
    .map(({ fullName, failureMessages }) => `${fullName}: ${failureMessages?.[0]}`);
  const others = results.filter(({ status }) => status !== "passed" && status !== "failed");
  return { passed, failed, skipped: others.map(({ fullName }) => fullName) };
}
