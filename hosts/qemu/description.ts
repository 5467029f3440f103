import { isObject } from "../../base/object.ts";
import { formatBytes } from "../../base/units.ts";
import { blocksInFilesOf, type FilesTaken } from "../files-taken.ts";

/**
 * What must be alike at both ends for QEMU to load the guest, as far as it can be asked before. It
 * travels from the source to the destination when they agree, as JSON.
 */
export interface GuestDescription extends FilesTaken {
  /** Versioned: `pc-i440fx-7.2`. */
  readonly machine: string;
  readonly version: string;
  readonly cpus: number;
  readonly backends: readonly BackendDescription[];
  /** Names of blocks that QEMU moves itself; empty where it cannot tell. */
  readonly ownBlocks: readonly string[];
}

interface BackendDescription {
  readonly id: string;
  readonly sizeBytes: number;
  readonly address: number;
}

const KIND = "qemu";

export function encodeDescription(guest: GuestDescription): string {
  return JSON.stringify({ kind: KIND, ...guest });
}

/** Undefined for what is not the description of a QEMU's guest: it comes from the other end. */
export function decodeDescription(text: string): GuestDescription | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isDescription(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isDescription(value: unknown): value is GuestDescription {
  if (!isObject(value) || value["kind"] !== KIND) return false;
  const { machine, version, cpus, backends, ownBlocks, kernel, files } = value;
  return (
    [machine, version, kernel].every((text) => typeof text === "string") &&
    typeof cpus === "number" &&
    Array.isArray(backends) &&
    backends.every(isBackend) &&
    Array.isArray(ownBlocks) &&
    ownBlocks.every((name) => typeof name === "string") &&
    isObject(files)
  );
}

function isBackend(value: unknown): boolean {
  if (!isObject(value)) return false;
  const { id, sizeBytes, address } = value;
  return typeof id === "string" && typeof sizeBytes === "number" && typeof address === "number";
}

/** Why the guest could not run at the destination, each in a sentence with what to change. */
export function differences(source: GuestDescription, destination: GuestDescription): string[] {
  const problems: string[] = [];
  if (source.machine !== destination.machine) {
    problems.push(
      `the machine is ${source.machine} at the source and ${destination.machine} at the destination: start it with -machine ${source.machine}`,
    );
  }
  if (source.cpus !== destination.cpus) {
    problems.push(
      `the source has ${source.cpus} processors and the destination ${destination.cpus}: start it with -smp ${source.cpus}`,
    );
  }
  problems.push(...layoutDifferences(source, destination));
  problems.push(...lackingBlocks(source, destination));
  problems.push(...sameFiles(source, destination));
  return problems;
}

function layoutDifferences(source: GuestDescription, destination: GuestDescription): string[] {
  const problems: string[] = [];
  const own = new Map(destination.backends.map((backend) => [backend.id, backend]));
  for (const { id, sizeBytes, address } of source.backends) {
    const found = own.get(id);
    own.delete(id);
    if (found === undefined) {
      problems.push(`RAM backend "${id}" is missing at the destination: give it one of that id`);
    } else if (found.sizeBytes !== sizeBytes) {
      const [here, there] = [formatBytes(sizeBytes), formatBytes(found.sizeBytes)];
      problems.push(
        `RAM backend "${id}" has ${here} at the source and ${there} at the destination`,
      );
    } else if (found.address !== address) {
      problems.push(
        `RAM backend "${id}" lies elsewhere at the destination: keep the order of nodes`,
      );
    }
  }
  for (const id of own.keys()) problems.push(`RAM backend "${id}" is missing at the source`);
  return problems;
}

function lackingBlocks(source: GuestDescription, destination: GuestDescription): string[] {
  if (destination.ownBlocks.length === 0) return [];
  const own = new Set(destination.ownBlocks);
  return source.ownBlocks
    .filter((name) => !own.has(name))
    .map((name) => `memory of "${name}" is missing at the destination: give both the same devices`);
}

function sameFiles(source: GuestDescription, destination: GuestDescription): string[] {
  return blocksInFilesOf(source, destination).map(
    (id) => `RAM backend "${id}" is in the source's own file: give the destination another`,
  );
}
