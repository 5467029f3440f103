import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { must } from "../../base/assert.ts";

/** A process that listens on a port, and from then on is stopped: it accepts nobody. */
const LISTEN = `
  const server = require("node:net").createServer();
  server.listen({ host: "127.0.0.1", port: 0, backlog: 1 }, () => {
    console.log(server.address().port);
    process.kill(process.pid, "SIGSTOP");
  });
`;

/** More than wait in its backlog: the system lets these in, and answers nobody after them. */
const GUESTS = 4;

/** A port that takes part in TCP and no more. `await using` ends its process. */
export class DeafListener implements AsyncDisposable {
  readonly address: string;
  readonly #process: ChildProcess;
  readonly #guests: readonly Socket[];

  private constructor(child: ChildProcess, port: number) {
    this.#process = child;
    this.address = `tcp:127.0.0.1:${port}`;
    this.#guests = Array.from({ length: GUESTS }, () => connect({ host: "127.0.0.1", port }));
    for (const guest of this.#guests) guest.on("error", () => {});
  }

  static async start(): Promise<DeafListener> {
    const child = spawn(process.execPath, ["-e", LISTEN], { stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await once(must(child.stdout, "it is a pipe"), "data");
    const listener = new DeafListener(child, Number(line));
    // Two connections wait to be accepted; the backlog is full with them.
    await Promise.all(listener.#guests.slice(0, 2).map((guest) => once(guest, "connect")));
    return listener;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const guest of this.#guests) guest.destroy();
    const ended = once(this.#process, "exit");
    this.#process.kill("SIGKILL");
    await ended;
  }
}
