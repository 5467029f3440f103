import { spawnSync } from "node:child_process";
import { accessSync, closeSync, constants, openSync, readdirSync, readSync } from "node:fs";
import { delimiter, isAbsolute, join } from "node:path";

/** What booting Linux takes from this machine. */
export interface Programs {
  readonly qemuPath: string;
  readonly busyboxPath: string;
  readonly kernelPath: string;
}

const BOOT_FOLDER = "/boot";

/** The interpreter of a dynamic executable is named within its first page. */
const INTERPRETER = "/ld-";
const PAGE_BYTES = 4096;

/** What is missing here to boot Linux, each with what provides it. Empty: it can be booted. */
export function missingPrograms(): string[] {
  const { qemuPath, busyboxPath, kernelPath } = findPrograms();
  return [
    ...(process.arch === "x64" ? [] : [`an x86-64 machine (this one is ${process.arch})`]),
    ...(qemuPath ? [] : ["qemu-system-x86_64 (package qemu-system-x86)"]),
    ...(busyboxPath ? [] : ["a static busybox (package busybox-static)"]),
    ...(kernelPath ? [] : [`${BOOT_FOLDER}/vmlinuz-* (package linux-image-cloud-amd64)`]),
  ];
}

/** What is missing here to compile a static program for the guest, each with what provides it. */
export function missingCompiler(): string[] {
  if (inPath("gcc").length === 0) return ["gcc (packages gcc and libc6-dev)"];
  // It answers with the bare name when there is no such file.
  const { stdout } = spawnSync("gcc", ["-print-file-name=libc.a"], { encoding: "utf8" });
  return isAbsolute(stdout.trim()) ? [] : ["a static C library (package libc6-dev)"];
}

/** The programs, or an Error that lists everything that is missing. */
export function requirePrograms(): Programs {
  const { qemuPath, busyboxPath, kernelPath } = findPrograms();
  const missing = missingPrograms();
  if (missing.length > 0 || !qemuPath || !busyboxPath || !kernelPath) {
    throw new Error(`Cannot boot Linux: missing are ${missing.join(", ")}`);
  }
  return { qemuPath, busyboxPath, kernelPath };
}

function findPrograms(): { [Name in keyof Programs]: string | undefined } {
  return {
    qemuPath: inPath("qemu-system-x86_64").at(0),
    busyboxPath: inPath("busybox").find(isStatic),
    kernelPath: findKernel(),
  };
}

function inPath(name: string): string[] {
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  return folders
    .map((folder) => join(folder, name))
    .filter((path) => isAllowed(path, constants.X_OK));
}

/** The newest kernel for clouds, which boots fastest; else the newest of any flavour. */
function findKernel(): string | undefined {
  const names = isAllowed(BOOT_FOLDER, constants.R_OK) ? readdirSync(BOOT_FOLDER) : [];
  const kernels = names
    .filter((name) => name.startsWith("vmlinuz-"))
    .sort((a, b) => b.localeCompare(a, "en", { numeric: true }))
    .map((name) => join(BOOT_FOLDER, name))
    .filter((path) => isAllowed(path, constants.R_OK));
  return kernels.find((path) => path.includes("cloud")) ?? kernels.at(0);
}

/** The guest has no shared libraries: a dynamic busybox would not start there. */
function isStatic(path: string): boolean {
  const page = Buffer.alloc(PAGE_BYTES);
  const descriptor = openSync(path, "r");
  try {
    readSync(descriptor, page, 0, PAGE_BYTES, 0);
  } finally {
    closeSync(descriptor);
  }
  return !page.includes(INTERPRETER);
}

function isAllowed(path: string, access: number): boolean {
  try {
    accessSync(path, access);
    return true;
  } catch {
    return false;
  }
}
