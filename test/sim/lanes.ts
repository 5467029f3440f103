import { must } from "../../base/assert.ts";
import { MigrationError } from "../../base/errors.ts";
import { Stopped } from "../../channels/descriptor.ts";
import type { LaneThreads } from "../../engine/surroundings.ts";
import { orBits } from "../../workers/dirty-words.ts";
import { BELL, SEATS_MAX, takeQuestion } from "../../workers/fault-door.ts";
import { FINISH, OPEN } from "../../workers/lane-words.ts";
import type { ChannelPlace, LaneSetup } from "../../workers/protocol.ts";
import type { Network } from "./network.ts";
import { place } from "./placing.ts";
import { HEADER_BYTES, SimulatedThread, type ThreadFlaws, usedOf } from "./thread.ts";
import type { World } from "./world.ts";

/** A lane looks so often whether somebody waits for a page, or all is over. */
const LOOK_MS = 2;
const PREFETCH_PAGES = 2;

type SourceSetup = Extract<LaneSetup, { side: "source" }>;
type DestinationSetup = Extract<LaneSetup, { side: "destination" }>;

interface Lane {
  readonly setup: LaneSetup;
  readonly end: PromiseWithResolvers<void>;
  thread: SimulatedThread | null;
}

/** Priority lanes of one end: their protocol, over simulated channels. */
export class SimulatedLanes implements LaneThreads {
  readonly #world: World;
  readonly #network: Network;
  readonly #flaws: ThreadFlaws;
  readonly #lanes: readonly Lane[];
  readonly #channels = new Map<number, SimulatedThread>();
  /** Those that have brought a page. */
  readonly #busy = new Set<SimulatedThread>();

  constructor(world: World, network: Network, setups: readonly LaneSetup[], flaws: ThreadFlaws) {
    this.#world = world;
    this.#network = network;
    this.#flaws = flaws;
    this.#lanes = setups.map((setup) => {
      const end = Promise.withResolvers<void>();
      end.promise.catch(() => {}); // There may be nobody who waits for it.
      return { setup, end, thread: null };
    });
  }

  /** The thread of this channel is gone at once, if it is a lane's. */
  kill(channel: number): void {
    this.#channels.get(channel)?.kill();
  }

  async start(): Promise<void> {
    await this.#world.sleep(0.05);
  }

  serve(index: number, channelPlace: ChannelPlace, onFailure: (error: unknown) => void): void {
    const lane = must(this.#lanes[index], "every priority channel has a lane");
    const { setup } = lane;
    const { control, channelTimeoutMs } = setup.side === "source" ? setup.send : setup.receive;
    const { channel } = channelPlace;
    const thread = new SimulatedThread(this.#world, { control, channel, channelTimeoutMs });
    thread.open(this.#network.socketOf(channelPlace.readFd));
    lane.thread = thread;
    this.#channels.set(channel, thread);
    lane.end.promise.catch(onFailure);
    const serving =
      setup.side === "source" ? this.#send(setup, thread, channel) : this.#receive(setup, thread);
    serving.then(lane.end.resolve, lane.end.reject);
  }

  comeFirst(): void {}

  async ended(): Promise<void> {
    await Promise.all(this.#lanes.map(({ end }) => end.promise));
  }

  /** Those that serve see the stop word; the others are ended. */
  async close(): Promise<boolean> {
    for (const { thread, end } of this.#lanes) if (thread === null) end.reject(new Stopped());
    await Promise.allSettled(this.#lanes.map(({ end }) => end.promise));
    return true;
  }

  async #send(setup: SourceSetup, thread: SimulatedThread, channel: number): Promise<void> {
    const { send, words } = setup;
    const sentHere = new Set<string>();
    for (;;) {
      const message = thread.poll();
      if (message !== undefined) {
        if (message.kind !== "request" || Atomics.load(words, OPEN) === 0) {
          const facts = { channel, frame: message.kind, wanted: "request" };
          throw new MigrationError("FRAME_UNEXPECTED", facts);
        }
        await this.#answer(send, thread, message, sentHere);
      } else if (Atomics.load(words, FINISH) !== 0) {
        await thread.post({ kind: "end" }, HEADER_BYTES);
        return;
      } else {
        const isDue = (): boolean => Atomics.load(words, FINISH) !== 0;
        await thread.awaitReadable({ everyMs: LOOK_MS, isDue });
      }
    }
  }

  /** The page, whoever has taken it before, and those behind it that nobody has. */
  async #answer(
    send: SourceSetup["send"],
    thread: SimulatedThread,
    wanted: { block: number; page: number },
    sentHere: Set<string>,
  ): Promise<void> {
    const block = must(send.blocks[wanted.block], "a request names a block");
    const end = Math.min(block.pageCount, wanted.page + 1 + PREFETCH_PAGES);
    for (let page = wanted.page; page < end; page += 1) {
      const [word, bit] = [page >>> 5, 1 << (page & 31)];
      const key = `${wanted.block}:${page}`;
      const isOurs = (Atomics.and(block.dirty.words, word, ~bit) & bit) !== 0;
      const isRepeated = page === wanted.page && !sentHere.has(key);
      if (!isOurs && !isRepeated) continue;
      const bytes = usedOf(block, page).slice();
      try {
        const pages = [{ page, bytes }];
        await thread.post(
          { kind: "pages", block: wanted.block, pages },
          HEADER_BYTES + bytes.length,
        );
      } catch (error) {
        if (isOurs && !thread.isDead) orBits(block.dirty, word, bit);
        throw error;
      }
      sentHere.add(key);
      this.#busy.add(thread);
      if (this.#busy.size > 1) this.#world.reached.add("several lanes bring pages");
      thread.counters.add("pages", 1);
    }
  }

  async #receive(setup: DestinationSetup, thread: SimulatedThread): Promise<void> {
    const { receive, words, lane, lanes } = setup;
    const door = must(receive.door, "a lane serves a door");
    let from = 0;
    let heard = -1;
    const isDue = (): boolean =>
      Atomics.load(words, OPEN) !== 0 && Atomics.load(door.words, BELL) !== heard;
    for (;;) {
      const isOpen = Atomics.load(words, OPEN) !== 0;
      if (isOpen) heard = Atomics.load(door.words, BELL);
      const question = isOpen ? takeQuestion(door, { from, lane, lanes }) : null;
      if (question !== null) {
        const { seat, block, page } = question;
        from = (seat + 1) % SEATS_MAX;
        await thread.post({ kind: "request", block, page }, HEADER_BYTES);
      }
      const message = thread.poll();
      if (message?.kind === "end") return;
      if (message?.kind === "pages") place(receive, message, this.#flaws);
      else if (question === null) await thread.awaitReadable({ everyMs: LOOK_MS, isDue });
    }
  }
}
