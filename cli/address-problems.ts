import { fstatSync } from "node:fs";
import { type Address, parseAddress } from "../channels/address.ts";

/** The kernel keeps a socket's path in so many bytes (`sun_path`), the closing zero included. */
const SOCKET_PATH_BYTES = process.platform === "linux" ? 108 : 104;

/** What is wrong with an address, as far as it can be told before it is used. */
export function addressProblems(text: string | undefined): string[] {
  // A missing one is told as such, and a rule of legality speaks about files.
  if (text === undefined || text.startsWith("file:")) return [];
  try {
    return problemsOf(parseAddress(text));
  } catch (error) {
    if (error instanceof RangeError) return [error.message];
    throw error;
  }
}

function problemsOf(address: Address): string[] {
  if (address.kind === "fd") {
    return address.descriptors
      .filter((fd) => !isSocket(fd))
      .map((fd) => `address names descriptor ${fd}, which is not a socket that was inherited`);
  }
  const problem = address.kind === "unix" ? socketPathProblem(address.path) : undefined;
  return problem === undefined ? [] : [`address ${problem}`];
}

/** What is wrong with the path of a socket, for a sentence that begins with what has it. */
export function socketPathProblem(path: string): string | undefined {
  const bytes = Buffer.byteLength(path);
  if (bytes < SOCKET_PATH_BYTES) return undefined;
  return `has a path of ${bytes} bytes: a socket's has less than ${SOCKET_PATH_BYTES}, so use a relative one`;
}

function isSocket(fd: number): boolean {
  try {
    return fstatSync(fd).isSocket();
  } catch {
    return false;
  }
}
