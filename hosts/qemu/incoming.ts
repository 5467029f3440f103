import type { Socket } from "node:net";
import { within } from "../../base/clock.ts";
import { MigrationError, reasonOf } from "../../base/errors.ts";
import { MigrationStatus } from "./migration-status.ts";
import { PrivateSocket } from "./private-socket.ts";
import type { QemuProcess } from "./process.ts";
import type { Qmp } from "./qmp.ts";

const LOAD_LIMIT_MS = 30_000;

/** One load of a guest's devices into a QEMU that waits for them. */
export class Incoming {
  readonly #qmp: Qmp;
  readonly #owner: QemuProcess | undefined;
  #socket: Socket | null = null;
  #isOver = false;

  constructor(qmp: Qmp, owner: QemuProcess | undefined) {
    this.#qmp = qmp;
    this.#owner = owner;
  }

  /** On return QEMU has loaded them, and the guest stands still. */
  async load(devices: Uint8Array): Promise<void> {
    const status = new MigrationStatus(this.#qmp);
    const place = new PrivateSocket(this.#qmp.path, this.#owner);
    try {
      await this.#listen(`unix:${place.path}`);
      const socket = await place.connect();
      this.#socket = socket;
      if (this.#isOver) throw new Error("the guest was discarded");
      await this.#write(socket, devices);
      await status.reach(["completed"], LOAD_LIMIT_MS);
    } catch (error) {
      throw this.#qmp.isLost ? ended(error) : error;
    } finally {
      status.close();
      place.remove();
      this.#socket?.destroy();
    }
  }

  /** A load that goes on has failed with this. */
  end(): void {
    this.#isOver = true;
    this.#socket?.destroy();
  }

  /** A QEMU that knows how stays alive when it cannot load; older ones end. */
  async #listen(uri: string): Promise<void> {
    try {
      await this.#qmp.execute("migrate-incoming", { uri, "exit-on-error": false });
    } catch (error) {
      if (!isUnknownParameter(error)) throw error;
      await this.#qmp.execute("migrate-incoming", { uri });
    }
  }

  async #write(socket: Socket, devices: Uint8Array): Promise<void> {
    const written = Promise.withResolvers<void>();
    socket.once("error", (error) => written.reject(error));
    socket.once("close", () => written.reject(new Error("QEMU closed it")));
    socket.end(devices, () => written.resolve());
    const late = (): MigrationError =>
      new MigrationError("HYPERVISOR_SILENT", {
        waitingFor: "reading of its device state",
        limitMs: LOAD_LIMIT_MS,
      });
    // A QEMU that cannot load says why on its monitor, or by its end; not here.
    await within(LOAD_LIMIT_MS, written.promise, late).catch((error: unknown) => {
      if (error instanceof MigrationError) throw error;
    });
  }
}

/** All that older versions do when they cannot load: they write why and exit. */
function ended(cause: unknown): MigrationError {
  const reason =
    "it ended while it loaded the guest's devices, and wrote why to its standard error";
  return new MigrationError("HYPERVISOR_LOST", { reason }, { cause });
}

function isUnknownParameter(error: unknown): boolean {
  return error instanceof MigrationError && reasonOf(error).includes("exit-on-error");
}
