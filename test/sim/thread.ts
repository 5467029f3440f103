import { must } from "../../base/assert.ts";
import { MigrationError } from "../../base/errors.ts";
import { Stopped } from "../../channels/descriptor.ts";
import { type Control, CounterRow, isStopped, stopOf } from "../../workers/control.ts";
import type { ReceiveSetup } from "../../workers/protocol.ts";
import { USED_BYTES } from "./guest.ts";
import type { SimulatedSocket } from "./network.ts";
import type { World } from "./world.ts";

/** What threads say to each other over the channels of pages. */
export type Message =
  | { readonly kind: "pages"; readonly block: number; readonly pages: readonly SentPage[] }
  | { readonly kind: "fence" | "applied"; readonly number: number }
  | { readonly kind: "request"; readonly block: number; readonly page: number }
  | { readonly kind: "end" };

export interface SentPage {
  readonly page: number;
  readonly bytes: Uint8Array;
}

/** Ways in which threads can be wrong, for the test of the test. */
export interface ThreadFlaws {
  /** In each round but the first, one page of each chunk is taken from the bitmap and not sent. */
  readonly losesPage?: boolean;
  /** What a task did not come to is forgotten, when its round is hurried. */
  readonly dropsBits?: boolean;
  /** In post-copy a page is placed as often as it comes. */
  readonly overwrites?: boolean;
  /** A while after the end of what came it still writes a page. */
  readonly writesLate?: boolean;
}

export const HEADER_BYTES = 24;

/** How often a thread that waits looks at the stop word. */
const LOOK_MS = 20;

export interface ThreadTerms {
  readonly control: Control;
  readonly channel: number;
  readonly channelTimeoutMs: number;
}

/** How a thread that waits looks up now and then, and what for. */
export interface Looks {
  readonly everyMs?: number;
  isDue(): boolean;
}

/** A simulated thread with its channel: how it reads, writes and waits, and what ends it. */
export class SimulatedThread {
  readonly #world: World;
  readonly #terms: ThreadTerms;
  readonly counters: CounterRow;
  readonly #stop: Int32Array;
  #socket: SimulatedSocket | null = null;
  #isDead = false;
  #hangsUntilMs = 0;

  constructor(world: World, terms: ThreadTerms) {
    this.#world = world;
    this.#terms = terms;
    this.counters = new CounterRow(terms.control, terms.channel - 1);
    this.#stop = stopOf(terms.control, terms.channel);
  }

  open(socket: SimulatedSocket): void {
    this.#socket = socket;
  }

  /** It is gone at once, with whatever it has taken. */
  kill(): void {
    this.#isDead = true;
  }

  /** A dead one gives nothing back. */
  get isDead(): boolean {
    return this.#isDead;
  }

  /** At its next step it hangs in the kernel for so long: no word reaches it there. */
  hang(forMs: number): void {
    this.#hangsUntilMs = this.#world.nowMs() + forMs;
  }

  async post(message: Message, size: number): Promise<void> {
    const socket = this.#ofSocket;
    const { channel, channelTimeoutMs: limitMs } = this.#terms;
    const startMs = this.#world.nowMs();
    let outcome: "waits" | "done" | Error = "waits";
    let wake = (): void => {};
    socket.post(message, size).then(
      () => {
        outcome = "done";
        wake();
      },
      (error: Error) => {
        outcome = error;
        wake();
      },
    );
    const isLate = (): boolean => this.#world.nowMs() - startMs > limitMs;
    while (outcome === "waits") {
      await this.look(
        (call) => {
          wake = call;
        },
        { isDue: isLate },
      );
      if (outcome === "waits" && isLate()) {
        throw new MigrationError("CHANNEL_STALLED", { channel, direction: "write", limitMs });
      }
    }
    if (outcome !== "done") throw this.#lost();
    this.counters.add("movedBytes", size);
  }

  /** What came, without waiting for it. */
  poll(): Message | undefined {
    const message = this.#ofSocket.poll();
    if (message === null) throw this.#lost();
    return message as Message | undefined;
  }

  async next(limitMs: number): Promise<Message> {
    const startMs = this.#world.nowMs();
    const isLate = (): boolean => this.#world.nowMs() - startMs > limitMs;
    for (;;) {
      const message = this.poll();
      if (message !== undefined) return message;
      await this.awaitReadable({ isDue: isLate });
      if (isLate()) {
        const { channel } = this.#terms;
        throw new MigrationError("CHANNEL_STALLED", { channel, direction: "read", limitMs });
      }
    }
  }

  /** Waits until there may be something to read, or until a look finds what it looks for. */
  async awaitReadable(looks: Looks): Promise<void> {
    await this.look((call) => this.#ofSocket.whenReadable(call), looks);
  }

  /** Waits for a call, or until a look finds what it looks for; throws what ends a thread. */
  async look(
    arrange: (call: () => void) => void,
    { everyMs = LOOK_MS, isDue }: Looks,
  ): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const callOff = this.#world.watch(everyMs, () => this.#hasEnded || isDue(), resolve);
    arrange(resolve);
    await promise;
    callOff();
    await this.#step();
  }

  async pause(ms: number): Promise<void> {
    await this.#step();
    await this.#world.sleep(ms);
    await this.#step();
  }

  async #step(): Promise<void> {
    const hangsMs = this.#hangsUntilMs - this.#world.nowMs();
    if (hangsMs > 0) await this.#world.sleep(hangsMs);
    this.#check();
  }

  get #hasEnded(): boolean {
    return this.#isDead || isStopped(this.#stop);
  }

  #check(): void {
    if (!this.#hasEnded) return;
    const { channel } = this.#terms;
    if (!this.#isDead) throw new Stopped();
    throw new MigrationError("WORKER_DIED", { channel, reason: "the simulation ended it" });
  }

  #lost(): MigrationError {
    const { channel } = this.#terms;
    return new MigrationError("CHANNEL_LOST", { channel, reason: "the other end closed it" });
  }

  get #ofSocket(): SimulatedSocket {
    return must(this.#socket, "a channel is opened first");
  }
}

/** What guests use of a page, and so what has to travel of it. */
export function usedOf(
  { place, pageBytes }: Pick<ReceiveSetup["blocks"][number], "place" | "pageBytes">,
  page: number,
): Uint8Array {
  if (place.kind !== "shared") throw new Error("simulated memory is shared");
  return new Uint8Array(place.buffer, page * pageBytes, USED_BYTES);
}
