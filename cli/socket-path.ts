import { lstatSync, statSync } from "node:fs";
import { connect } from "node:net";
import { dirname } from "node:path";
import { errnoOf, MigrationError } from "../base/errors.ts";

/**
 * The same failure in better words, where it is that a unix socket cannot be made: the system's
 * reason ("address already in use", and for a folder that is missing "permission denied") does not
 * say what to do.
 */
export async function explainedListenFailure(error: unknown, address: string): Promise<unknown> {
  if (!(error instanceof MigrationError) || error.code !== "ADDRESS_UNUSABLE") return error;
  const path = address.startsWith("unix:") ? address.slice("unix:".length) : "";
  const reason = path === "" ? null : await obstacle(path);
  if (reason === null) return error;
  const { at } = error;
  const known = at === undefined ? {} : { at };
  return new MigrationError("ADDRESS_UNUSABLE", { address, reason }, { ...known, cause: error });
}

/** What stands in the way of a socket at `path`, or null when it cannot be told. */
async function obstacle(path: string): Promise<string | null> {
  const folder = dirname(path);
  try {
    if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() !== true) {
      return `there is no folder "${folder}"`;
    }
    const found = lstatSync(path, { throwIfNoEntry: false });
    if (found === undefined) return null;
    if (!found.isSocket()) return "something of that name is there, and it is not a socket";
  } catch {
    return null; // The folder is not ours to look into.
  }
  return (await answers(path))
    ? "somebody listens there already"
    : "a socket is left there from a process that has ended: remove it";
}

/** Connects and leaves: a listener takes that for a stranger and turns it away. */
async function answers(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const socket = connect({ path });
  socket.once("connect", () => resolve(true));
  socket.once("error", (error) => resolve(errnoOf(error) !== "ECONNREFUSED"));
  const isAlive = await promise;
  socket.destroy();
  return isAlive;
}
