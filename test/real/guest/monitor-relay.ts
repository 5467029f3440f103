import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { isObject } from "../../../base/object.ts";
import { Lines } from "../../../hosts/qemu/lines.ts";
import type { Monitor } from "./journey.ts";

/** What QEMU says of its own migration, as the engine waits for it. */
export type MigrationState = "pre-switchover" | "completed";

/**
 * Stands between the engine and the monitor of a QEMU and keeps the engine in a phase: QEMU has come
 * as far as a chosen state of its migration, and the engine does not hear of that before it is
 * released. All else passes, so QEMU obeys as ever.
 */
export class MonitorRelay implements AsyncDisposable {
  /** For the engine, in QEMU's own folder. */
  readonly qmpPath: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #holding = Promise.withResolvers<void>();
  #held: MigrationState | null;
  #deliver = (): void => {};

  private constructor(server: Server, qmpPath: string, hold: MigrationState) {
    this.#server = server;
    this.qmpPath = qmpPath;
    this.#held = hold;
  }

  static async start(qemu: Monitor, hold: MigrationState): Promise<MonitorRelay> {
    const server = createServer();
    const relay = new MonitorRelay(server, `${qemu.qmpPath}.relay`, hold);
    server.on("connection", (engine) => relay.#join(engine, connect(qemu.qmpPath)));
    await once(server.listen(relay.qmpPath), "listening");
    return relay;
  }

  /** Resolves when QEMU has said it. */
  get holding(): Promise<void> {
    return this.#holding.promise;
  }

  /** The engine hears it, now or as soon as it is said. */
  release(): void {
    this.#held = null;
    this.#deliver();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }

  #join(engine: Socket, qemu: Socket): void {
    for (const [socket, other] of [
      [engine, qemu],
      [qemu, engine],
    ] as const) {
      this.#sockets.add(socket);
      socket.on("error", () => {}); // The process that it belongs to is gone: `close` follows.
      socket.on("close", () => other.destroy());
    }
    engine.pipe(qemu);
    const lines = new Lines();
    const pass = (line: string): void => {
      if (!engine.destroyed) engine.write(`${line}\r\n`);
    };
    qemu.on("data", (bytes) => {
      for (const line of lines.push(bytes)) {
        if (this.#held === null || migrationState(line) !== this.#held) {
          pass(line);
          continue;
        }
        this.#deliver = () => pass(line);
        this.#holding.resolve();
      }
    });
  }
}

/** Of an event that tells one. */
function migrationState(line: string): unknown {
  const message: unknown = JSON.parse(line);
  if (!isObject(message) || message["event"] !== "MIGRATION") return undefined;
  return isObject(message["data"]) ? message["data"]["status"] : undefined;
}
