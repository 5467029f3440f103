import { once } from "node:events";
import { createConnection, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { within } from "../../base/clock.ts";

const ANSWER_LIMIT_MS = 10_000;

/** What QEMU writes on its monitor, one JSON object per line: a greeting, an answer or an event. */
interface MonitorLine {
  readonly return?: unknown;
  readonly error?: { readonly desc: string };
}

/**
 * As much of QEMU's monitor protocol (QMP) as stopping a guest takes: one command at a time over a
 * unix socket; events are passed over.
 */
export class Monitor {
  readonly #socket: Socket;
  readonly #lines: AsyncIterator<string>;

  /** Connects and leaves the negotiation mode, after which commands are accepted. */
  static async connect(path: string): Promise<Monitor> {
    const socket = createConnection(path);
    await once(socket, "connect");
    const monitor = new Monitor(socket);
    await monitor.execute("qmp_capabilities");
    return monitor;
  }

  private constructor(socket: Socket) {
    this.#socket = socket;
    // Whoever waits for an answer sees the end of the lines; the cause adds nothing to that.
    socket.on("error", () => {});
    this.#lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  }

  /** Resolves with what the command returned. Not to be called again before that. */
  async execute(command: string, words: object = {}): Promise<unknown> {
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: words })}\n`);
    return await within(
      ANSWER_LIMIT_MS,
      this.#answerTo(command),
      () => new Error(`Cannot execute "${command}": QEMU was silent for ${ANSWER_LIMIT_MS} ms`),
    );
  }

  close(): void {
    this.#socket.destroy();
  }

  async #answerTo(command: string): Promise<unknown> {
    while (true) {
      const { done, value } = await this.#lines.next();
      if (done === true) throw new Error(`Cannot execute "${command}": QEMU closed its monitor`);
      const line = JSON.parse(value) as MonitorLine;
      if (line.error) throw new Error(`Cannot execute "${command}": ${line.error.desc}`);
      if (line.return !== undefined) return line.return;
    }
  }
}
