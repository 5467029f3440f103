import { assert, must } from "../../base/assert.ts";
import { MigrationError } from "../../base/errors.ts";
import type { LaneThreads, ThreadPool } from "../../engine/surroundings.ts";
import { CounterRow, isStopped, mustLeave, stopOf } from "../../workers/control.ts";
import { lowestBit, PAGES_PER_WORD, takeWords, undoWords } from "../../workers/dirty-words.ts";
import type {
  ChannelPlace,
  ReceiveSetup,
  ReceiveTask,
  SendSetup,
  SendTask,
  TaskDone,
} from "../../workers/protocol.ts";
import type { Network, SimulatedSocket } from "./network.ts";
import type { World } from "./world.ts";

/** What threads say to each other over a bulk channel. */
type Message =
  | { readonly kind: "pages"; readonly block: number; readonly pages: readonly SentPage[] }
  | { readonly kind: "fence" | "applied"; readonly number: number }
  | { readonly kind: "end" };

interface SentPage {
  readonly page: number;
  readonly bytes: Uint8Array;
}

/** Ways in which threads can be wrong, for the test of the test. */
export interface ThreadFlaws {
  /** One page of the first round is taken from the bitmap and not sent. */
  readonly losesPage?: boolean;
  /** What a task did not come to is forgotten, when its round is hurried. */
  readonly dropsBits?: boolean;
}

const PAGES_PER_FRAME = 8;
const HEADER_BYTES = 24;
const HAND_OVER_MS = 0.05;
/** How often a thread that waits looks at the stop word. */
const LOOK_MS = 20;

class Stopped extends Error {}

/** Simulated migrations bring all memory before the guest: they have no priority lanes. */
export class NoLanes implements LaneThreads {
  constructor(setups: readonly unknown[]) {
    assert(setups.length === 0, "nothing is simulated of priority lanes");
  }

  async start(): Promise<void> {}

  serve(): void {
    throw new Error("there is no lane");
  }

  async ended(): Promise<void> {}

  async close(): Promise<boolean> {
    return true;
  }
}

/** Threads of one end, each a chain of tasks that moves pages through its simulated channel. */
export class SimulatedThreads implements ThreadPool {
  readonly #world: World;
  readonly #network: Network;
  readonly #setup: SendSetup | ReceiveSetup;
  readonly #flaws: ThreadFlaws;
  readonly #tails = new Map<number, Promise<unknown>>();
  readonly #sockets = new Map<number, SimulatedSocket>();
  readonly #dead = new Set<number>();

  constructor(world: World, network: Network, setup: SendSetup | ReceiveSetup, flaws: ThreadFlaws) {
    this.#world = world;
    this.#network = network;
    this.#setup = setup;
    this.#flaws = flaws;
  }

  /** The thread is gone at once, with whatever it has taken. */
  kill(channel: number): void {
    this.#dead.add(channel);
  }

  async run(channel: number, task: object): Promise<TaskDone | null> {
    const before = this.#tails.get(channel) ?? Promise.resolve();
    const running = before.then(() => this.#perform(channel, task as SendTask | ReceiveTask));
    this.#tails.set(
      channel,
      running.catch(() => {}),
    );
    try {
      return await running;
    } catch (error) {
      if (error instanceof Stopped) return null;
      throw error;
    }
  }

  /** As threads end when the stop word is set; without it nobody closes a pool. */
  async close(): Promise<boolean> {
    await Promise.all(this.#tails.values());
    return true;
  }

  async #perform(channel: number, task: SendTask | ReceiveTask): Promise<TaskDone> {
    await this.#pause(channel, HAND_OVER_MS);
    switch (task.kind) {
      case "start":
        break;
      case "open":
        this.#open(task.place);
        break;
      case "send":
        return await this.#send(channel, task);
      case "fence":
        await this.#fence(channel, task.number);
        break;
      case "end":
        await this.#post(channel, { kind: "end" }, HEADER_BYTES);
        break;
      case "receive":
        this.#open(task.place);
        return { pages: await this.#receive(channel) };
      default:
        throw new Error(`no simulated thread does "${task.kind}"`);
    }
    return { pages: 0 };
  }

  #open(place: ChannelPlace): void {
    this.#sockets.set(place.channel, this.#network.socketOf(place.readFd));
  }

  async #send(channel: number, task: SendTask & { kind: "send" }): Promise<TaskDone> {
    const block = must((this.#setup as SendSetup).blocks[task.block], "a task names a block");
    const wordsPerChunk = block.pagesPerChunk / PAGES_PER_WORD;
    const counters = this.#counters(channel);
    const taken: { first: number; words: Int32Array }[] = [];
    let left = task.chunks.length;
    let pages = 0;
    for (const chunk of task.chunks) {
      const first = chunk * wordsPerChunk;
      const size = Math.min(wordsPerChunk, block.dirty.words.length - first);
      const words = new Int32Array(size);
      if (mustLeave(stopOf(this.#setup.control, channel))) {
        if (this.#flaws.dropsBits === true) takeWords(block.dirty, first, words);
        continue;
      }
      left -= 1;
      counters.add("chunks", 1);
      block.senders[chunk] = channel;
      takeWords(block.dirty, first, words);
      taken.push({ first, words });
      const startMs = this.#world.nowMs();
      try {
        pages += await this.#sendTaken(channel, task, first, words);
      } catch (error) {
        for (const each of taken) undoWords(block.dirty, each.first, each.words);
        throw error;
      } finally {
        counters.add("sendMs", this.#world.nowMs() - startMs);
      }
      block.sent.set(words, first);
    }
    return { pages, left };
  }

  async #sendTaken(
    channel: number,
    task: SendTask & { kind: "send" },
    first: number,
    taken: Int32Array,
  ): Promise<number> {
    const block = must((this.#setup as SendSetup).blocks[task.block], "a task names a block");
    if (block.place.kind !== "shared") throw new Error("simulated memory is shared");
    const memory = new Uint8Array(block.place.buffer);
    const pages: number[] = [];
    for (const [index, word] of taken.entries()) {
      for (let bits = word; bits !== 0; bits &= bits - 1) {
        pages.push((first + index) * PAGES_PER_WORD + lowestBit(bits));
      }
    }
    const count = pages.length;
    if (this.#flaws.losesPage === true && task.round > 1) pages.pop();
    const counters = this.#counters(channel);
    while (pages.length > 0) {
      const frame = pages.splice(0, PAGES_PER_FRAME).map((page) => ({
        page,
        bytes: memory.slice(page * block.pageBytes, (page + 1) * block.pageBytes),
      }));
      const size = HEADER_BYTES + frame.length * block.pageBytes;
      await this.#post(channel, { kind: "pages", block: task.block, pages: frame }, size);
      counters.add("movedBytes", size);
      counters.add("raw", frame.length);
      counters.add("pages", frame.length);
    }
    return count;
  }

  async #fence(channel: number, number: number): Promise<void> {
    await this.#post(channel, { kind: "fence", number }, HEADER_BYTES);
    const limitMs = (this.#setup as SendSetup).fenceTimeoutMs;
    const answer = await this.#next(channel, limitMs);
    if (answer.kind !== "applied" || answer.number !== number) {
      throw new Error("a fence is answered by its own number");
    }
  }

  async #receive(channel: number): Promise<number> {
    const { blocks } = this.#setup as ReceiveSetup;
    let received = 0;
    for (;;) {
      const message = await this.#next(channel, Number.POSITIVE_INFINITY);
      if (message.kind === "end") return received;
      if (message.kind === "fence") {
        await this.#post(channel, { kind: "applied", number: message.number }, HEADER_BYTES);
      } else if (message.kind === "pages") {
        const { place, pageBytes } = must(blocks[message.block], "a frame names a block");
        if (place.kind !== "shared") throw new Error("simulated memory is shared");
        const memory = new Uint8Array(place.buffer);
        for (const { page, bytes } of message.pages) memory.set(bytes, page * pageBytes);
        received += message.pages.length;
      }
    }
  }

  async #post(channel: number, message: Message, size: number): Promise<void> {
    const socket = this.#socket(channel);
    const startMs = this.#world.nowMs();
    const { channelTimeoutMs: limitMs } = this.#setup;
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
    while (outcome === "waits") {
      await this.#look(channel, (call) => {
        wake = call;
      });
      if (outcome === "waits" && this.#world.nowMs() - startMs > limitMs) {
        throw new MigrationError("CHANNEL_STALLED", { channel, direction: "write", limitMs });
      }
    }
    if (outcome !== "done") throw lost(channel);
  }

  async #next(channel: number, limitMs: number): Promise<Message> {
    const socket = this.#socket(channel);
    const startMs = this.#world.nowMs();
    for (;;) {
      const message = socket.poll();
      if (message === null) throw lost(channel);
      if (message !== undefined) return message as Message;
      await this.#look(channel, (call) => socket.whenReadable(call));
      if (this.#world.nowMs() - startMs > limitMs) {
        throw new MigrationError("CHANNEL_STALLED", { channel, direction: "read", limitMs });
      }
    }
  }

  /** Waits for a call or for a while; throws what ends a thread. */
  async #look(channel: number, arrange: (call: () => void) => void): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const callOff = this.#world.at(LOOK_MS, this.#world.side, resolve);
    arrange(resolve);
    await promise;
    callOff();
    this.#check(channel);
  }

  async #pause(channel: number, ms: number): Promise<void> {
    this.#check(channel);
    await this.#world.sleep(ms);
    this.#check(channel);
  }

  #check(channel: number): void {
    if (this.#dead.has(channel)) {
      throw new MigrationError("WORKER_DIED", { channel, reason: "the simulation ended it" });
    }
    if (isStopped(stopOf(this.#setup.control, channel))) throw new Stopped();
  }

  #socket(channel: number): SimulatedSocket {
    return must(this.#sockets.get(channel), "a channel is opened first");
  }

  #counters(channel: number): CounterRow {
    return new CounterRow(this.#setup.control, channel - 1);
  }
}

function lost(channel: number): MigrationError {
  return new MigrationError("CHANNEL_LOST", { channel, reason: "the other end closed it" });
}
