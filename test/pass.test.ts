import { expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { useClock } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { Pass, type PassTerms } from "../engine/pass.ts";
import { SendChannel } from "../engine/send-channel.ts";
import type { ThreadPool } from "../engine/surroundings.ts";
import { Work } from "../engine/work.ts";
import { type Control, CounterRow, createControl, mustLeave, stopOf } from "../workers/control.ts";
import type { ChannelPlace, SendTask, TaskDone } from "../workers/protocol.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();
const CHUNK_BYTES = 4096;
const PART = "all" as const;

/** More questions than any pass here has a reason to ask. */
const QUESTIONS_MAX = 100_000;

/** Threads that take some turns of the event loop for a chunk, each its own number. */
class SlowThreads {
  /** Every chunk that was sent, as `block/chunk`. */
  readonly sent: string[] = [];
  readonly #control: Control;
  readonly #turns: readonly number[];
  readonly #tasks: Promise<unknown>[] = [];

  constructor(control: Control, turns: readonly number[]) {
    this.#control = control;
    this.#turns = turns;
  }

  async run(channel: number, task: SendTask): Promise<TaskDone> {
    const before = this.#tasks[channel];
    // As a real thread may, one without a task begins before the coordinator does anything else.
    const done = before?.then(() => this.#do(channel, task)) ?? this.#do(channel, task);
    this.#tasks[channel] = done;
    return await done;
  }

  async #do(channel: number, task: SendTask): Promise<TaskDone> {
    if (task.kind !== "send") return { pages: 0 };
    const counters = new CounterRow(this.#control, channel - 1);
    for (const [index, chunk] of task.chunks.entries()) {
      if (mustLeave(stopOf(this.#control, channel))) {
        return { pages: index, left: task.chunks.length - index };
      }
      counters.add("chunks", 1);
      this.sent.push(`${task.block}/${chunk}`);
      await turnsOf(must(this.#turns[channel - 1], "every channel has its speed"));
    }
    return { pages: task.chunks.length };
  }
}

async function turnsOf(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) {
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Sends `work` over channels of these speeds; throws where a pass only asks and sends nothing. */
async function passOver(work: Work, turns: readonly number[]): Promise<string[]> {
  const control = createControl(turns.length);
  const threads = new SlowThreads(control, turns);
  const pool = threads as unknown as ThreadPool;
  const channels = turns.map((_, index) => new SendChannel(index + 1, pool, control));
  let questions = 0;
  const terms: PassTerms = {
    control,
    taskOf: ({ block, part, chunks }) => ({ kind: "send", block, part, chunks, round: 1 }),
    paysMs: 0,
    get chunkBytes() {
      questions += 1;
      if (questions > QUESTIONS_MAX) throw new Error("it goes round and round");
      return CHUNK_BYTES;
    },
    live: () => Promise.resolve(channels),
    giveUp: () => Promise.reject(new Error("no channel is lost here")),
    onDeath: () => {},
  };
  await new Pass(work, terms).run();
  return threads.sent;
}

test("channels without work of their own take each other's once, and begin it", async () => {
  // Many blocks of a chunk or two: whoever gives a batch to its thread leaves most of them waiting.
  const work = new Work();
  for (let block = 0; block < 33; block += 1) {
    work.add(1 + (block % 2), { block, part: PART }, 0, CHUNK_BYTES);
  }
  const sent = await passOver(work, [3, 3, 3, 3]);
  expect(sent).toHaveLength(33);
  expect(new Set(sent).size).toBe(33);
  expect(work.isEmpty).toBe(true);
});

test(`whatever waits where is sent once, by channels of any speed (SEED=${seed})`, async () => {
  const random = new Prng(seed);
  for (let run = 0; run < 40; run += 1) {
    const turns = Array.from({ length: 1 + random.below(6) }, () => 1 + random.below(12));
    const work = new Work();
    const blocks = 1 + random.below(20);
    let chunks = 0;
    for (let block = 0; block < blocks; block += 1) {
      const count = 1 + random.below(12);
      for (let chunk = 0; chunk < count; chunk += 1) {
        const channel = 1 + random.below(turns.length);
        work.add(channel, { block, part: PART }, chunk, 1 + random.below(CHUNK_BYTES));
      }
      chunks += count;
    }
    const sent = await passOver(work, turns);
    expect(new Set(sent).size, `run ${run}`).toBe(chunks);
    expect(sent, `run ${run}`).toHaveLength(chunks);
  }
});

test("a channel that is lost when it was too late to begin anything begins again when it is back", async () => {
  let now = 1;
  const looks: (() => void)[] = [];
  onTestFinished(
    useClock({
      nowMs: () => now,
      cpuMs: () => 0,
      after: () => () => {},
      every: (_ms, call) => {
        looks.push(call);
        return () => {};
      },
    }),
  );
  const control = createControl(2);
  const facts = { channel: 2, direction: "write", limitMs: 1 } as const;
  const stalled = new MigrationError("CHANNEL_STALLED", facts);
  let isStalled = true;
  // The second one stalls, is found too late, and lost; the first has more to do for long.
  const run = async (channel: number, task: SendTask): Promise<TaskDone> => {
    if (task.kind !== "send") return { pages: 0 };
    const counters = new CounterRow(control, channel - 1);
    for (const [index] of task.chunks.entries()) {
      if (mustLeave(stopOf(control, channel))) {
        return { pages: index, left: task.chunks.length - index };
      }
      counters.add("chunks", 1);
      counters.add("movedBytes", CHUNK_BYTES);
      await turnsOf(1);
      now += 50;
      for (const look of looks) look();
      while (channel === 2 && isStalled) {
        if (mustLeave(stopOf(control, 2))) throw stalled;
        await turnsOf(1);
      }
    }
    return { pages: task.chunks.length };
  };
  const channels = [1, 2].map((number) => {
    return new SendChannel(number, { run } as unknown as ThreadPool, control);
  });
  const work = new Work();
  for (let chunk = 0; chunk < 40; chunk += 1) {
    work.add(1 + (chunk % 2), { block: 0, part: PART }, chunk, CHUNK_BYTES);
  }
  let losses = 0;
  const terms: PassTerms = {
    control,
    taskOf: ({ block, part, chunks }) => ({ kind: "send", block, part, chunks, round: 1 }),
    paysMs: 0,
    chunkBytes: CHUNK_BYTES,
    live: async () => channels.filter(({ doom }) => doom === null),
    giveUp: async () => {
      losses += 1;
    },
    onDeath: () => {},
  };
  await new Pass(work, terms).run();
  expect(losses).toBe(1);
  isStalled = false;
  await must(channels[1], "there are two").open({ channel: 2 } as ChannelPlace);
  expect(mustLeave(stopOf(control, 2))).toBe(false);
});
