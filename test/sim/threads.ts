import { must } from "../../base/assert.ts";
import { within } from "../../base/clock.ts";
import { Stopped } from "../../channels/descriptor.ts";
import type { ThreadPool } from "../../engine/surroundings.ts";
import { mustLeave, stopOf } from "../../workers/control.ts";
import { lowestBit, PAGES_PER_WORD, takeWords, undoWords } from "../../workers/dirty-words.ts";
import type {
  ReceiveSetup,
  ReceiveTask,
  SendSetup,
  SendTask,
  TaskDone,
} from "../../workers/protocol.ts";
import { USED_BYTES } from "./guest.ts";
import type { Network } from "./network.ts";
import { place } from "./placing.ts";
import {
  HEADER_BYTES,
  type SentPage,
  SimulatedThread,
  type ThreadFlaws,
  usedOf,
} from "./thread.ts";
import type { World } from "./world.ts";

const PAGES_PER_FRAME = 8;
const HAND_OVER_MS = 0.05;

/** The guest runs by then, where nothing keeps it. */
const LATE_MS = 200;

/** As the real ones: what takes this long is stuck. */
const THREAD_END_MS = 2000;

/** Threads of one end, each a chain of tasks that moves pages through its simulated channel. */
export class SimulatedThreads implements ThreadPool {
  readonly #world: World;
  readonly #network: Network;
  readonly #setup: SendSetup | ReceiveSetup;
  readonly #channels: number;
  readonly #flaws: ThreadFlaws;
  readonly #tails = new Map<number, Promise<unknown>>();
  readonly #threads = new Map<number, SimulatedThread>();

  constructor(
    world: World,
    network: Network,
    { setup, channels }: { setup: SendSetup | ReceiveSetup; channels: number },
    flaws: ThreadFlaws,
  ) {
    this.#world = world;
    this.#network = network;
    this.#setup = setup;
    this.#channels = channels;
    this.#flaws = flaws;
  }

  /** The thread is gone at once, with whatever it has taken. */
  kill(channel: number): void {
    this.#thread(channel).kill();
  }

  /** The thread hangs for a while, as on a disk that does not answer. */
  hang(channel: number, forMs: number): void {
    this.#thread(channel).hang(forMs);
  }

  async begun(): Promise<void> {
    const setup = this.#setup as ReceiveSetup;
    const channels = Array.from({ length: this.#channels }, (_, index) => index + 1);
    await Promise.all(channels.map((channel) => this.run(channel, { kind: "begin", setup })));
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

  /** As threads end when the stop word is set, but for those that hang: false after `limitMs`. */
  async close(limitMs = THREAD_END_MS): Promise<boolean> {
    const late = new Error("a thread hangs");
    try {
      await within(limitMs, Promise.all(this.#tails.values()), () => late);
      return true;
    } catch (error) {
      if (error !== late) throw error;
      return false;
    }
  }

  async #perform(channel: number, task: SendTask | ReceiveTask): Promise<TaskDone> {
    const thread = this.#thread(channel);
    await thread.pause(HAND_OVER_MS);
    switch (task.kind) {
      case "begin":
        break;
      case "open":
        thread.open(this.#network.socketOf(task.place.readFd));
        break;
      case "send":
        return await this.#send(channel, task);
      case "fence":
        await this.#fence(channel, task.number);
        break;
      case "end":
        await thread.post({ kind: "end" }, HEADER_BYTES);
        break;
      case "receive":
        thread.open(this.#network.socketOf(task.place.readFd));
        return { pages: await this.#receive(channel) };
      default:
        throw new Error(`no simulated thread does "${task.kind}"`);
    }
    return { pages: 0 };
  }

  async #send(channel: number, task: SendTask & { kind: "send" }): Promise<TaskDone> {
    const block = must((this.#setup as SendSetup).blocks[task.block], "a task names a block");
    const wordsPerChunk = block.pagesPerChunk / PAGES_PER_WORD;
    const { counters } = this.#thread(channel);
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
        const back = this.#thread(channel).isDead ? [] : taken;
        for (const each of back) undoWords(block.dirty, each.first, each.words);
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
    const pages: number[] = [];
    for (const [index, word] of taken.entries()) {
      for (let bits = word; bits !== 0; bits &= bits - 1) {
        pages.push((first + index) * PAGES_PER_WORD + lowestBit(bits));
      }
    }
    const count = pages.length;
    if (this.#flaws.losesPage === true && task.round > 1) pages.pop();
    const thread = this.#thread(channel);
    while (pages.length > 0) {
      const frame = copiesOf(block, pages.splice(0, PAGES_PER_FRAME));
      const size = HEADER_BYTES + frame.length * block.pageBytes;
      await thread.post({ kind: "pages", block: task.block, pages: frame }, size);
      thread.counters.add("raw", frame.length);
      thread.counters.add("pages", frame.length);
    }
    return count;
  }

  async #fence(channel: number, number: number): Promise<void> {
    const thread = this.#thread(channel);
    await thread.post({ kind: "fence", number }, HEADER_BYTES);
    const answer = await thread.next((this.#setup as SendSetup).fenceTimeoutMs);
    if (answer.kind !== "applied" || answer.number !== number) {
      throw new Error("a fence is answered by its own number");
    }
  }

  async #receive(channel: number): Promise<number> {
    const thread = this.#thread(channel);
    let received = 0;
    for (;;) {
      const message = await thread.next(Number.POSITIVE_INFINITY);
      if (message.kind === "end") {
        if (this.#flaws.writesLate === true) this.#world.at(LATE_MS, null, () => this.#spoil());
        return received;
      }
      if (message.kind === "fence") {
        await thread.post({ kind: "applied", number: message.number }, HEADER_BYTES);
      } else if (message.kind === "pages") {
        place(this.#setup as ReceiveSetup, message, this.#flaws);
        received += message.pages.length;
      }
    }
  }

  #spoil(): void {
    const block = must((this.#setup as ReceiveSetup).blocks[0], "a guest has blocks");
    usedOf(block, 0).fill(1);
  }

  #thread(channel: number): SimulatedThread {
    const known = this.#threads.get(channel);
    if (known !== undefined) return known;
    const { control, channelTimeoutMs } = this.#setup;
    const thread = new SimulatedThread(this.#world, { control, channel, channelTimeoutMs });
    this.#threads.set(channel, thread);
    return thread;
  }
}

/** In one piece of memory: thousands of runs send millions of pages. */
function copiesOf(block: SendSetup["blocks"][number], pages: readonly number[]): SentPage[] {
  const copies = new Uint8Array(pages.length * USED_BYTES);
  return pages.map((page, index) => {
    const bytes = copies.subarray(index * USED_BYTES, (index + 1) * USED_BYTES);
    bytes.set(usedOf(block, page));
    return { page, bytes };
  });
}
