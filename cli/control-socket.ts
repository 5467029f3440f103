import { chmodSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { after, within } from "../base/clock.ts";
import { asMigrationError, MigrationError, reasonOf } from "../base/errors.ts";
import type { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import type { PostcopySwitch } from "../engine/postcopy-switch.ts";
import { explainedListenFailure } from "./socket-path.ts";

/**
 * How a command that runs is talked to: a unix socket, for whoever may write to it, which is its
 * owner. A connection says one JSON line, `{"do":"status"}`, `{"do":"postcopy"}`, `{"do":"pause"}` or
 * `{"do":"recover","address":ADDRESS}`, and gets one back. What else it says is refused.
 */
export const DEEDS = ["status", "postcopy", "pause", "recover"] as const;
export type Deed = (typeof DEEDS)[number];

export interface Plea {
  readonly do: Deed;
  readonly address?: string;
}

export type Answer =
  | { readonly event: "status"; readonly phase: string; readonly pausedFor: object | null }
  | { readonly event: "recovered"; readonly address: string }
  | { readonly event: "failed"; readonly failure: object }
  /** Nothing was tried. */
  | { readonly event: "refused"; readonly reason: string };

const EVENTS: readonly Answer["event"][] = ["status", "recovered", "failed", "refused"];

/** What is said is short, and said at once: whoever is longer, or slower, is no operator. */
const PLEA_BYTES_MAX = 4096;
const LINE_MS = 5000;
const TALKERS_MAX = 8;

/** A failure repeats the address that was asked for, some times. */
const ANSWER_BYTES_MAX = 16 * PLEA_BYTES_MAX;
/** A recovery takes as long as its steps may. */
const ANSWER_MS = 10 * 60_000;

interface Controlled {
  readonly recovery: PostcopyRecovery;
  /** At a source. */
  readonly postcopySwitch?: PostcopySwitch | undefined;
  phase(): string;
}

/** Throws ADDRESS_UNUSABLE. Disposed of, it answers nobody any more. */
export async function openControl(path: string, controlled: Controlled): Promise<AsyncDisposable> {
  const talkers = new Set<Socket>();
  // Who has said all is answered all the same.
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => {}); // Who leaves needs no answer.
    if (talkers.size >= TALKERS_MAX) {
      socket.destroy();
      return;
    }
    talkers.add(socket);
    socket.once("close", () => talkers.delete(socket));
    void serve(socket, controlled);
  });
  await startServer(server, path);
  return {
    async [Symbol.asyncDispose]() {
      for (const socket of talkers) socket.destroySoon();
      const { promise, resolve } = Promise.withResolvers<void>();
      server.close(() => resolve());
      // An answer that nobody reads must not keep the command.
      const prevent = after(LINE_MS, () => {
        for (const socket of talkers) socket.destroy();
      });
      await promise;
      prevent();
    },
  };
}

async function startServer(server: Server, path: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen({ path }, resolve);
  try {
    await promise;
    chmodSync(path, 0o600);
  } catch (error) {
    const address = `unix:${path}`;
    const facts = { address, reason: reasonOf(error) };
    const failure = new MigrationError("ADDRESS_UNUSABLE", facts, { cause: error });
    throw await explainedListenFailure(failure, address);
  }
  server.on("error", () => {});
  server.unref(); // It is no reason to go on.
}

async function serve(socket: Socket, controlled: Controlled): Promise<void> {
  let answer: Answer;
  try {
    answer = await perform(pleaOf(await lineOf(socket, LINE_MS, PLEA_BYTES_MAX)), controlled);
  } catch (error) {
    const reason = error instanceof RangeError ? error.message : reasonOf(error);
    answer = { event: "refused", reason };
  }
  socket.end(`${JSON.stringify(answer)}\n`);
}

async function perform(
  plea: Plea,
  { recovery, postcopySwitch, phase }: Controlled,
): Promise<Answer> {
  if (plea.do === "recover") {
    try {
      return { event: "recovered", address: await recovery.recover(plea.address) };
    } catch (error) {
      if (error instanceof RangeError) throw error; // It cannot be asked for, or not so.
      return { event: "failed", failure: asMigrationError(error).toJSON() };
    }
  }
  if (plea.do === "pause") {
    if (!phase().startsWith("postcopy")) throw new RangeError("it is not in post-copy");
    recovery.pause();
  }
  if (plea.do === "postcopy") goOver(postcopySwitch);
  return { event: "status", phase: phase(), pausedFor: recovery.pausedFor?.toJSON() ?? null };
}

/** Throws RangeError where a guest cannot go over, or not now. */
function goOver(postcopySwitch: PostcopySwitch | undefined): void {
  if (postcopySwitch === undefined) throw new RangeError("post-copy begins at the source");
  if (!postcopySwitch.isAttached) {
    throw new RangeError('it is not in pre-copy, or its --postcopy is "never"');
  }
  postcopySwitch.start();
}

/** Throws RangeError for what is no plea. */
export function pleaOf(line: string): Plea {
  let said: unknown;
  try {
    said = JSON.parse(line);
  } catch {
    throw new RangeError("it is not a line of JSON");
  }
  const { do: deed, address, ...rest } = (said ?? {}) as Record<string, unknown>;
  if (!DEEDS.some((each) => each === deed)) {
    throw new RangeError(`"do" must be one of ${DEEDS.join(", ")}`);
  }
  if (address !== undefined && (typeof address !== "string" || deed !== "recover")) {
    throw new RangeError('"address" is text, and for "recover"');
  }
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw new RangeError(`"${unknown.slice(0, 40)}" is not known`);
  return { do: deed as Deed, ...(address === undefined ? {} : { address: address as string }) };
}

/** Asks a command that listens at `path`. Throws CONNECT_FAILED when no answer came. */
export async function askControl(path: string, plea: Plea): Promise<Answer> {
  const socket = connect({ path });
  try {
    socket.write(`${JSON.stringify(plea)}\n`);
    return answerIn(await lineOf(socket, ANSWER_MS, ANSWER_BYTES_MAX));
  } catch (error) {
    const facts = { address: `unix:${path}`, reason: reasonOf(error) };
    throw new MigrationError("CONNECT_FAILED", facts, { cause: error });
  } finally {
    socket.destroy();
  }
}

/** Another program may listen there, such as QEMU at its monitor. */
function answerIn(line: string): Answer {
  const stranger = new Error("what answers there is no multifd");
  try {
    const said = JSON.parse(line) as Answer | null;
    if (EVENTS.some((each) => each === said?.event)) return said as Answer;
  } catch {
    throw stranger;
  }
  throw stranger;
}

/** The first line that comes. Throws when it is too long or too late, or the socket ends before. */
async function lineOf(socket: Socket, limitMs: number, bytesMax: number): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const chunks: Buffer[] = [];
  let bytes = 0;
  socket.once("error", reject);
  socket.once("end", () => reject(new Error("it ended without a line")));
  socket.on("data", (chunk: Buffer) => {
    const end = chunk.indexOf("\n");
    bytes += end === -1 ? chunk.length : end;
    if (bytes > bytesMax) reject(new RangeError("the line is too long"));
    else chunks.push(end === -1 ? chunk : chunk.subarray(0, end));
    if (bytes > bytesMax || end !== -1) socket.pause();
    if (end !== -1) resolve(Buffer.concat(chunks).toString());
  });
  return await within(limitMs, promise, () => new Error(`no line came within ${limitMs} ms`));
}
