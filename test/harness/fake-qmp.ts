import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A command as it came over the socket. */
export interface Asked {
  readonly execute?: string;
  readonly "exec-oob"?: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
  readonly id?: unknown;
}

/** What a monitor does with each command; what it returns is not looked at. */
export type Behaviour = (asked: Asked, monitor: FakeQmp) => void;

export const GREETING = {
  QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: "" }, capabilities: ["oob"] },
};

/** A monitor that says what a test tells it to, to the one client that it has. */
export class FakeQmp implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "multifd-qmp-"));
  readonly path = join(this.folder, "qmp");
  /** Every command that came, in order. */
  readonly asked: Asked[] = [];
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #client: Socket | null = null;

  private constructor(greeting: string, behave: Behaviour) {
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      this.#client = socket;
      socket.on("error", () => {}); // A client that goes is no concern of this end.
      if (greeting !== "") socket.write(greeting);
      let rest = "";
      socket.setEncoding("utf8").on("data", (text: string) => {
        const lines = (rest + text).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          const asked = JSON.parse(line) as Asked;
          this.asked.push(asked);
          behave(asked, this);
        }
      });
    });
  }

  static async start(
    behave: Behaviour,
    greeting = `${JSON.stringify(GREETING)}\r\n`,
  ): Promise<FakeQmp> {
    const monitor = new FakeQmp(greeting, behave);
    await once(monitor.#server.listen(monitor.path), "listening");
    return monitor;
  }

  get commands(): string[] {
    return this.asked.map((asked) => asked.execute ?? `oob ${asked["exec-oob"]}`);
  }

  say(message: object): void {
    this.write(`${JSON.stringify(message)}\r\n`);
  }

  answer({ id }: Asked, value: unknown = {}): void {
    this.say({ return: value, id });
  }

  refuse({ id }: Asked, desc: string): void {
    this.say({ error: { class: "GenericError", desc }, id });
  }

  event(event: string, data: object = {}): void {
    const us = Date.now() * 1000;
    const timestamp = { seconds: Math.floor(us / 1e6), microseconds: us % 1e6 };
    this.say({ timestamp, event, data });
  }

  write(bytes: string | Uint8Array): void {
    this.#client?.write(bytes);
  }

  hangUp(): void {
    this.#client?.destroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (this.#server.listening) await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.folder, { recursive: true, force: true });
  }
}
