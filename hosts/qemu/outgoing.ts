import type { Socket } from "node:net";
import { within } from "../../base/clock.ts";
import { MigrationError, reasonOf } from "../../base/errors.ts";
import type { DeviceTerms } from "../../engine/host.ts";
import { MigrationStatus, untilIdle } from "./migration-status.ts";
import { PrivateSocket } from "./private-socket.ts";
import type { QemuProcess } from "./process.ts";
import type { Qmp } from "./qmp.ts";

const CANCEL_LIMIT_MS = 3000;
const END_LIMIT_MS = 10_000;

/**
 * One migration of QEMU's own into a local socket of ours: without shared RAM, so that what comes is
 * the state of its devices and its small blocks. It ends in `finish` or in `cancel`.
 */
export class Outgoing {
  readonly status: MigrationStatus;
  readonly #qmp: Qmp;
  readonly #owner: QemuProcess | undefined;
  readonly #stream = new DeviceStream();
  #isCancelled = false;
  #isStarted = false;
  #isFinished = false;

  constructor(qmp: Qmp, owner: QemuProcess | undefined) {
    this.#qmp = qmp;
    this.#owner = owner;
    this.status = new MigrationStatus(qmp);
  }

  /** QEMU saved everything, and stays stopped. */
  get isFinished(): boolean {
    return this.#isFinished;
  }

  /** On return the guest stands still, its RAM will not change, and QEMU waits for `finish`. */
  async begin(terms: DeviceTerms): Promise<void> {
    const place = new PrivateSocket(this.#qmp.path, this.#owner);
    using failing = new DisposableStack();
    try {
      const door = await place.listen();
      failing.defer(() => door.close());
      if (this.#isCancelled) throw cancelled();
      this.#stream.failed.catch(() => {}); // Whoever waits is told; there may be nobody.
      door.connected.then(
        (socket) => this.#stream.read(socket, terms),
        (error) => this.#stream.fail(error),
      );
      await this.#start(`unix:${place.path}`);
      const stopped = this.status.reach(["pre-switchover"], terms.limitMs);
      await Promise.race([stopped, this.#stream.failed]);
      failing.move(); // QEMU is connected: the door has closed, or is about to.
    } finally {
      place.remove();
    }
  }

  /** One that does not answer may have begun all the same. */
  async #start(uri: string): Promise<void> {
    this.#isStarted = true;
    try {
      await this.#qmp.execute("migrate", { uri });
    } catch (error) {
      this.#isStarted = !isRefusal(error);
      throw error;
    }
  }

  /** Lets QEMU save its devices. On return it has, and everything that it wrote is here. */
  async finish(terms: DeviceTerms): Promise<Uint8Array> {
    this.#stream.follow(terms);
    await this.#qmp.execute("migrate-continue", { state: "pre-switchover" });
    await Promise.race([this.status.reach(["completed"], terms.limitMs), this.#stream.failed]);
    this.#isFinished = true;
    const late = (): MigrationError =>
      new MigrationError("HYPERVISOR_SILENT", {
        waitingFor: "end of the device state",
        limitMs: terms.limitMs,
      });
    return await within(terms.limitMs, this.#stream.whole, late);
  }

  /** Ends it, wherever it is. Harmless when it never began or has ended. */
  async cancel(): Promise<void> {
    this.#isCancelled = true;
    if (!this.#isStarted || this.status.hasEnded) return this.#close();
    try {
      await this.#qmp.execute("migrate_cancel", {}, { limitMs: CANCEL_LIMIT_MS });
    } catch (error) {
      if (!isSilence(error)) throw error;
      await this.#yank();
    }
    this.#stream.fail(cancelled());
    await untilIdle(this.#qmp, END_LIMIT_MS);
    this.#close();
  }

  /** QEMU hangs in its last stage, where only this is heard. */
  async #yank(): Promise<void> {
    this.#stream.fail(cancelled()); // It may hang in writing to us.
    if (!this.#qmp.hasOutOfBand) return;
    const instances = [{ type: "migration" }];
    try {
      await this.#qmp.execute("yank", { instances }, { limitMs: CANCEL_LIMIT_MS, outOfBand: true });
    } catch (error) {
      if (!isRefusal(error)) throw error; // There is nothing left to yank.
    }
  }

  #close(): void {
    this.#stream.fail(cancelled());
    this.status.close();
  }
}

function isSilence(error: unknown): boolean {
  return error instanceof MigrationError && error.code === "HYPERVISOR_SILENT";
}

function isRefusal(error: unknown): boolean {
  return error instanceof MigrationError && error.code === "HYPERVISOR_REFUSED";
}

function cancelled(): Error {
  return new Error("the migration was cancelled");
}

/** What QEMU writes, kept until it has written all of it, within the limit. */
class DeviceStream {
  readonly #pieces: Buffer[] = [];
  readonly #whole = Promise.withResolvers<Uint8Array>();
  readonly #failed = Promise.withResolvers<never>();
  #socket: Socket | undefined;
  #bytes = 0;
  #failure: Error | undefined;
  #terms: DeviceTerms | undefined;

  constructor() {
    this.#whole.promise.catch(() => {});
  }

  get whole(): Promise<Uint8Array> {
    return this.#whole.promise;
  }

  get failed(): Promise<never> {
    return this.#failed.promise;
  }

  follow(terms: DeviceTerms): void {
    this.#terms = terms;
    terms.onBytes(this.#bytes);
  }

  read(socket: Socket, terms: DeviceTerms): void {
    this.#socket = socket;
    this.#terms ??= terms;
    if (this.#failure !== undefined) return void socket.destroy();
    socket.on("data", (piece) => this.#take(piece));
    socket.on("error", (error) => this.fail(error));
    socket.on("end", () => this.#whole.resolve(Buffer.concat(this.#pieces)));
  }

  fail(error: unknown): void {
    this.#failure ??= error instanceof Error ? error : new Error(reasonOf(error));
    this.#failed.reject(this.#failure);
    this.#whole.reject(this.#failure);
    this.#socket?.destroy();
  }

  #take(piece: Buffer): void {
    this.#bytes += piece.length;
    this.#pieces.push(piece);
    const { limitBytes = 0, onBytes } = this.#terms ?? {};
    onBytes?.(this.#bytes);
    if (this.#bytes > limitBytes) {
      const facts = { bytes: this.#bytes, limitBytes };
      this.fail(new MigrationError("DEVICES_TOO_LARGE", facts));
    }
  }
}
