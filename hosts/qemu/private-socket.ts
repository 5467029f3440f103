import { chmodSync, chownSync, mkdtempSync, rmSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { MigrationError, reasonOf } from "../../base/errors.ts";
import type { QemuProcess } from "./process.ts";

/** What `sun_path` of a unix socket holds without its final NUL. */
const SOCKET_PATH_BYTES_MAX = 107;

const FOLDER_PREFIX = "multifd-";

/**
 * A place for one local socket that QEMU and this process can reach, and nobody else. It is beside
 * QEMU's monitor if we may write there: QEMU was there before, whatever it sees of other folders.
 */
export class PrivateSocket {
  readonly path: string;
  readonly #folder: string;
  readonly #owner: QemuProcess | undefined;

  constructor(monitorPath: string, owner: QemuProcess | undefined) {
    this.#owner = owner;
    this.#folder = makeFolder([dirname(resolve(monitorPath)), tmpdir()]);
    this.path = join(this.#folder, "s");
    this.#hand(this.#folder);
  }

  /** Waits there for QEMU, which connects once. The place is gone as soon as it has. */
  async listen(): Promise<{ readonly connected: Promise<Socket>; close(): void }> {
    const server = createServer({ pauseOnConnect: false });
    const close = (): void => {
      server.close();
      this.remove();
    };
    const connected = new Promise<Socket>((resolve, reject) => {
      server.once("connection", (socket) => {
        resolve(socket);
        close();
      });
      server.once("close", () => reject(new Error("nobody connected")));
    });
    connected.catch(() => {}); // Closed before anybody waited.
    await new Promise<void>((resolve, reject) => {
      server.once("error", (error) => reject(failed(this.path, reasonOf(error))));
      server.listen(this.path, resolve);
    });
    chmodSync(this.path, 0o600);
    this.#hand(this.path);
    return { connected, close };
  }

  /** Connects to QEMU, which listens there. */
  async connect(): Promise<Socket> {
    const socket = createConnection(this.path);
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("error", (error) => reject(failed(this.path, reasonOf(error))));
    });
    this.remove();
    return socket;
  }

  remove(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** A QEMU of another user gets it, if we may give it; we are root then and get in all the same. */
  #hand(path: string): void {
    if (this.#owner === undefined || this.#owner.userId === process.getuid?.()) return;
    try {
      chownSync(path, this.#owner.userId, this.#owner.groupId);
    } catch {
      // QEMU will say that it cannot get in.
    }
  }
}

function makeFolder(parents: readonly string[]): string {
  let reason = "";
  for (const parent of parents) {
    const longest = join(parent, `${FOLDER_PREFIX}XXXXXX`, "s");
    if (Buffer.byteLength(longest) > SOCKET_PATH_BYTES_MAX) {
      reason ||= `"${parent}" is too long for a socket's path`;
      continue;
    }
    try {
      return mkdtempSync(join(parent, FOLDER_PREFIX));
    } catch (error) {
      reason ||= reasonOf(error);
    }
  }
  throw failed(parents.join(", "), reason);
}

function failed(path: string, reason: string): MigrationError {
  const facts = { action: "open a local socket for QEMU", reason: `${path}: ${reason}` };
  return new MigrationError("HOST_FAILED", facts);
}
