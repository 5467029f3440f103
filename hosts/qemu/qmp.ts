import { createConnection, type Socket } from "node:net";
import { assert } from "../../base/assert.ts";
import { nowMs, within } from "../../base/clock.ts";
import { MigrationError, reasonOf } from "../../base/errors.ts";
import { isObject } from "../../base/object.ts";
import { Lines } from "./lines.ts";

/** What QEMU answers in milliseconds may wait for its main loop, and that for a disk. */
const ANSWER_LIMIT_MS = 10_000;

/** A monitor that somebody else is connected to accepts nobody and says nothing. */
const GREETING_LIMIT_MS = 5000;

export type QmpObject = Readonly<Record<string, unknown>>;

export interface QmpEvent {
  readonly name: string;
  readonly data: QmpObject;
  /** When QEMU saw it happen, by its own word, on the clock of `nowMs`. */
  readonly atMs: number;
}

export interface CommandOptions {
  readonly limitMs?: number;
  /** Served at once, also while QEMU's main loop hangs; for the few commands that allow it. */
  readonly outOfBand?: boolean;
}

interface Waiting {
  readonly command: string;
  readonly answer: PromiseWithResolvers<unknown>;
}

/**
 * QEMU's monitor protocol (QMP) over a unix socket: commands with their answers, and events.
 *
 * It fails with MigrationErrors only: HYPERVISOR_UNREACHABLE when there is no QMP at the path,
 * HYPERVISOR_REFUSED when QEMU answers with an error, HYPERVISOR_SILENT when it does not answer in
 * time, and HYPERVISOR_LOST for everything that is asked of a connection that has ended.
 */
export class Qmp {
  readonly path: string;
  readonly #socket: Socket;
  readonly #lines = new Lines();
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #greeting = Promise.withResolvers<QmpObject>();
  readonly #lost = Promise.withResolvers<MigrationError>();
  #failure: MigrationError | null = null;
  #nextId = 1;
  #hasOutOfBand = false;

  /** Connects, and leaves the negotiation mode, after which commands are accepted. */
  static async connect(path: string, { limitMs = GREETING_LIMIT_MS } = {}): Promise<Qmp> {
    const qmp = new Qmp(path);
    try {
      await qmp.#negotiate(limitMs);
      return qmp;
    } catch (error) {
      qmp.close();
      throw new MigrationError(
        "HYPERVISOR_UNREACHABLE",
        { path, reason: error instanceof MigrationError ? wordsOf(error) : reasonOf(error) },
        { cause: error },
      );
    }
  }

  private constructor(path: string) {
    this.path = path;
    this.#socket = createConnection({ path }); // Bare, a number would be a port.
    this.#socket.on("data", (bytes) => this.#hear(bytes));
    this.#socket.on("error", (error) => this.#lose(reasonOf(error)));
    this.#socket.on("close", () => this.#lose("it closed its monitor"));
    this.#greeting.promise.catch(() => {}); // Lost before anybody waited for it.
  }

  /** Whether `outOfBand` may be asked for. */
  get hasOutOfBand(): boolean {
    return this.#hasOutOfBand;
  }

  /** Resolves, with the reason, when nothing can be asked any more. */
  get lost(): Promise<MigrationError> {
    return this.#lost.promise;
  }

  get isLost(): boolean {
    return this.#failure !== null;
  }

  /** Resolves with what the command returns. Commands are executed in the order of these calls. */
  async execute(
    command: string,
    words: QmpObject = {},
    options: CommandOptions = {},
  ): Promise<unknown> {
    const { limitMs = ANSWER_LIMIT_MS, outOfBand = false } = options;
    assert(!outOfBand || this.#hasOutOfBand, "out of band is for monitors that offer it");
    if (this.#failure !== null) throw this.#failure;
    const id = this.#nextId++;
    const answer = Promise.withResolvers<unknown>();
    this.#waiting.set(id, { command, answer });
    const verb = outOfBand ? "exec-oob" : "execute";
    this.#socket.write(`${JSON.stringify({ [verb]: command, arguments: words, id })}\n`);
    const waitingFor = `answer to ${command}`;
    try {
      return await within(limitMs, answer.promise, () => silent(waitingFor, limitMs));
    } finally {
      this.#waiting.delete(id); // A late answer is nobody's.
    }
  }

  /** Tells of every event until the returned function is called. */
  listen(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  close(): void {
    this.#lose("this end closed the monitor");
    this.#socket.destroy();
  }

  async #negotiate(limitMs: number): Promise<void> {
    const late = (): MigrationError => silent("greeting (is another client connected?)", limitMs);
    const greeting = await within(limitMs, this.#greeting.promise, late);
    const offered = greeting["capabilities"];
    const offersOutOfBand = Array.isArray(offered) && offered.includes("oob");
    await this.execute("qmp_capabilities", offersOutOfBand ? { enable: ["oob"] } : {}, { limitMs });
    this.#hasOutOfBand = offersOutOfBand;
  }

  #hear(bytes: Buffer): void {
    try {
      for (const line of this.#lines.push(bytes)) this.#read(line);
    } catch (error) {
      this.#lose(error instanceof RangeError ? error.message : reasonOf(error));
      this.#socket.destroy();
    }
  }

  #read(line: string): void {
    const message = objectIn(line);
    if (message === undefined) throw new RangeError("it sent a line that is not QMP");
    const { event, id, error, QMP: greeting } = message;
    if (isObject(greeting)) this.#greeting.resolve(greeting);
    else if (typeof event === "string") this.#tell(event, message);
    else this.#answer(id, message, error);
  }

  #answer(id: unknown, message: QmpObject, error: unknown): void {
    const waiting = typeof id === "number" ? this.#waiting.get(id) : undefined;
    if (waiting === undefined) return; // Too late, or to nothing that was asked.
    const { command, answer } = waiting;
    if ("return" in message) {
      answer.resolve(message["return"]);
      return;
    }
    const described = isObject(error) ? error["desc"] : undefined;
    const reason = typeof described === "string" ? described : "it does not say why";
    answer.reject(new MigrationError("HYPERVISOR_REFUSED", { command, reason }));
  }

  #tell(name: string, message: QmpObject): void {
    const event = { name, data: asObject(message["data"]), atMs: eventMs(message["timestamp"]) };
    for (const listener of this.#listeners) listener(event);
  }

  /** The first reason counts. */
  #lose(reason: string): void {
    if (this.#failure !== null) return;
    const failure = new MigrationError("HYPERVISOR_LOST", { reason });
    this.#failure = failure;
    this.#greeting.reject(failure);
    for (const { answer } of this.#waiting.values()) answer.reject(failure);
    this.#lost.resolve(failure);
  }
}

function asObject(value: unknown): QmpObject {
  return isObject(value) ? value : {};
}

function objectIn(line: string): QmpObject | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/**
 * QEMU tells the time of day. Only how long ago that was counts, by the same machine's clock at this
 * moment, so that it can be compared with times that were never a time of day.
 */
function eventMs(timestamp: unknown): number {
  const { seconds, microseconds } = asObject(timestamp);
  if (typeof seconds !== "number" || typeof microseconds !== "number") return nowMs();
  const { momentMs, dateMs } = readBothClocks();
  return momentMs - Math.max(0, dateMs - (seconds * 1000 + microseconds / 1000));
}

const CLOCKS_APART_MS = 0.5;
const CLOCK_READINGS = 10;

/** Two clocks at one moment: read again where this thread stood still between them. */
function readBothClocks(): { momentMs: number; dateMs: number } {
  let momentMs = nowMs();
  for (let reading = 1; ; reading += 1) {
    const dateMs = Date.now();
    const afterMs = nowMs();
    if (afterMs - momentMs < CLOCKS_APART_MS || reading === CLOCK_READINGS) {
      return { momentMs, dateMs };
    }
    momentMs = afterMs;
  }
}

function silent(waitingFor: string, limitMs: number): MigrationError {
  return new MigrationError("HYPERVISOR_SILENT", { waitingFor, limitMs });
}

/** Why, without what could not be done: that is said around it. */
function wordsOf(error: MigrationError): string {
  const { facts } = error;
  if ("reason" in facts && typeof facts.reason === "string") return facts.reason;
  return error.message.replace(/^Cannot go on: /, "");
}
