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
  if (address.kind === "unix" && Buffer.byteLength(address.path) >= SOCKET_PATH_BYTES) {
    const bytes = Buffer.byteLength(address.path);
    return [
      `address has a path of ${bytes} bytes: a socket's has less than ${SOCKET_PATH_BYTES}, so use a relative one`,
    ];
  }
  return [];
}

function isSocket(fd: number): boolean {
  try {
    return fstatSync(fd).isSocket();
  } catch {
    return false;
  }
}
