import { once } from "node:events";
import { createConnection, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { within } from "../../base/clock.ts";

const ANSWER_LIMIT_MS = 10_000;

/** An event of QEMU, or an answer to a command. */
interface Line {
  readonly event?: string;
  readonly data?: { readonly status?: string };
  readonly return?: unknown;
  readonly error?: { readonly desc: string };
}

/** QEMU's monitor protocol (QMP) over a unix socket, with the states of its migration. */
export class MigrationMonitor {
  readonly #socket: Socket;
  readonly #answers: PromiseWithResolvers<unknown>[] = [];
  readonly #ended = Promise.withResolvers<void>();

  /** Settles when the migration of this end does, without any polling that would cost time. */
  get ended(): Promise<void> {
    return this.#ended.promise;
  }

  static async connect(path: string): Promise<MigrationMonitor> {
    const socket = createConnection(path);
    await once(socket, "connect");
    const monitor = new MigrationMonitor(socket);
    await monitor.execute("qmp_capabilities");
    return monitor;
  }

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#ended.promise.catch(() => {}); // Nobody may be waiting yet.
    socket.on("error", () => {});
    socket.on("close", () => this.#fail(new Error("QEMU closed its monitor")));
    createInterface({ input: socket }).on("line", (text) => this.#hear(JSON.parse(text) as Line));
  }

  async execute(command: string, words: object = {}): Promise<unknown> {
    const answer = Promise.withResolvers<unknown>();
    this.#answers.push(answer);
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: words })}\n`);
    const late = () => new Error(`Cannot execute "${command}": QEMU is silent`);
    try {
      return await within(ANSWER_LIMIT_MS, answer.promise, late);
    } catch (error) {
      throw new Error(`Cannot execute "${command}"`, { cause: error });
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  #hear({ event, data, error, ...line }: Line): void {
    if (event === "MIGRATION") this.#followMigration(data?.status);
    else if (error !== undefined) this.#answers.shift()?.reject(new Error(error.desc));
    else if ("return" in line) this.#answers.shift()?.resolve(line.return);
  }

  #followMigration(status: string | undefined): void {
    if (status === "completed") this.#ended.resolve();
    if (status === "failed") this.#ended.reject(new Error("QEMU's migration failed"));
  }

  #fail(error: Error): void {
    this.#ended.reject(error);
    for (const { reject } of this.#answers.splice(0)) reject(error);
  }
}
