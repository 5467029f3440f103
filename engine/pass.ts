import { must } from "../base/assert.ts";
import { every, nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { askBack, type Control, isHurried } from "../workers/control.ts";
import type { SendTask } from "../workers/protocol.ts";
import { Flow } from "./flow.ts";
import { isLoss } from "./loss.ts";
import {
  type ChannelDelay,
  type ChannelLoad,
  type ChannelPace,
  type Help,
  helpFor,
  tooLate,
} from "./rebalance.ts";
import type { SendChannel } from "./send-channel.ts";
import { type Batch, bytesOf, type Work } from "./work.ts";

/**
 * A task's worth of dirty pages: enough to make the hand-over to the thread cheap (some 100 us of
 * both threads, and a core that the coordinator takes from a thread that is sending: with 8 MiB it
 * cost the source a tenth of its time). Who wants a round to end soon need not wait for a task, and
 * who wants what a slow thread has not begun neither.
 */
const TASK_BYTES = 64 * 2 ** 20;
/** An almost clean guest: so many chunks with a page or two each go in one task. */
const TASK_CHUNKS_MAX = 256;
/** How often a pass looks at how fast its channels are. */
const LOOK_MS = 50;
/** One task runs while the next one is on its way to the thread. */
const TASKS_IN_FLIGHT = 2;

export interface PassTerms {
  readonly control: Control;
  taskOf(batch: Batch): SendTask;
  /** Channels help each other if a pass ends so much sooner by it. */
  readonly paysMs: number;
  /** Size of an ordinary chunk of this pass. */
  readonly chunkBytes: number;
  /** Those that work, at least one; who waits for another connection may come to be among them. */
  live(): Promise<readonly SendChannel[]>;
  /** Gives a lost channel up: what it may not have brought over waits for others on return. */
  giveUp(channel: SendChannel): Promise<void>;
  /** A thread died with a batch: nobody knows what of it was dirty. */
  onDeath(batch: Batch): void;
}

/** Waits for work of another channel. */
interface Claim {
  readonly lane: Lane;
  /** What it was found to be worth asking for. */
  readonly bytesPerMs: number;
  readonly settle: () => void;
}

/** A channel within a pass. */
interface Lane {
  readonly channel: SendChannel;
  readonly inFlight: Set<Promise<unknown>>;
  /** Who waits for what its thread has not begun. */
  readonly claims: Claim[];
  /** What its thread had begun when it last gave something back; -1 before. */
  askedAtBytes: number;
  readonly flow: Flow;
  /** It begins nothing more, for it would be the last: see `tooLate`. */
  isLate: boolean;
  bytes: number;
  startMs: number;
  endMs: number;
  idleMs: number;
}

/**
 * One pass over the dirty memory: hands what waits to the channels' threads, lets fast channels
 * help slow ones, and goes on without those that are lost, until all is applied at the destination.
 */
export class Pass {
  readonly #work: Work;
  readonly #terms: PassTerms;
  readonly #lanes = new Map<number, Lane>();
  #isOver = false;
  /** Time spent in waiting for fences, all channels together, and the shortest of them. */
  fencedMs = 0;
  roundTripMs = Number.POSITIVE_INFINITY;

  constructor(work: Work, terms: PassTerms) {
    this.#work = work;
    this.#terms = terms;
  }

  /** Throws what ended it otherwise than by the loss of a channel. */
  async run(): Promise<void> {
    const endLooks = every(LOOK_MS, () => this.#look());
    try {
      let isFirst = true;
      do {
        const live = await this.#terms.live();
        const wasFirst = isFirst;
        isFirst = false;
        const ends = await Promise.allSettled(live.map((each) => this.#serve(each, wasFirst)));
        for (const end of ends) if (end.status === "rejected") throw end.reason;
      } while (!this.#work.isEmpty && !isHurried(this.#terms.control));
    } finally {
      endLooks();
    }
  }

  get paces(): ChannelPace[] {
    return [...this.#lanes.values()].map(({ channel, bytes, startMs, endMs, idleMs }) => {
      return { channel: channel.number, bytes, ms: endMs - startMs - idleMs };
    });
  }

  /** Keeps one channel's thread busy, then fences. A channel that is lost is given up. */
  async #serve(channel: SendChannel, mustFence: boolean): Promise<void> {
    const lane = this.#laneOf(channel);
    lane.isLate = false;
    try {
      await this.#feed(lane);
      if (mustFence || channel.unfenced.length > 0) {
        const fencedMs = await channel.fence();
        this.fencedMs += fencedMs;
        this.roundTripMs = Math.min(this.roundTripMs, fencedMs);
        lane.endMs = nowMs();
      }
    } catch (error) {
      // Its thread may be at the next task already, and would wait there as long again.
      if (isLoss(error)) channel.lose(error);
      await Promise.allSettled(lane.inFlight);
      this.#settle(lane);
      // It may have been too late; with another connection it would leave whatever it is given.
      askBack(this.#terms.control, channel.number, false);
      if (error instanceof MigrationError && error.code === "WORKER_DIED") {
        for (const batch of channel.given) this.#terms.onDeath(batch);
      }
      if (!isLoss(error)) {
        this.#isOver = true; // The others need not go on either.
        throw error;
      }
      await this.#terms.giveUp(channel);
    }
  }

  async #feed(lane: Lane): Promise<void> {
    while (!this.#isOver && !isHurried(this.#terms.control)) {
      const isAskedBack = lane.claims.length > 0 || lane.isLate;
      if (isAskedBack && lane.inFlight.size === 0) this.#settle(lane);
      if (lane.isLate && lane.inFlight.size === 0) break;
      const mayBegin = !isAskedBack || lane.inFlight.size === 0;
      const batch = mayBegin ? (this.#next(lane) ?? this.#nextOfOthers(lane)) : null;
      if (batch !== null) this.#give(lane, batch);
      const isFull = batch === null || lane.inFlight.size >= TASKS_IN_FLIGHT;
      if (isFull && lane.inFlight.size > 0) await Promise.race(lane.inFlight);
      else if (batch === null && !(await this.#wasGivenBack(lane))) break;
    }
    await Promise.all(lane.inFlight);
    this.#settle(lane);
    if (lane.isLate) {
      askBack(this.#terms.control, lane.channel.number, false);
      this.#leave(lane);
    }
    lane.flow.end();
  }

  /** What waits for a late channel is the others'. */
  #leave(lane: Lane): void {
    const heirs = [...this.#lanes.values()].filter((each) => {
      return each.channel.doom === null && !each.isLate;
    });
    this.#work.drain(lane.channel.number, (chunk) => {
      return (heirs[chunk % heirs.length] ?? lane).channel.number;
    });
  }

  /** Now and then: who is too slow to begin anything more? */
  #look(): void {
    const now = nowMs();
    const lanes = [...this.#lanes.values()].filter((lane) => {
      return lane.startMs > 0 && lane.channel.doom === null;
    });
    for (const { flow, channel } of lanes) flow.note(now, channel.movedBytes);
    const delays = lanes.flatMap((lane) => this.#delayOf(lane, now) ?? []);
    if (delays.length < 2 || delays.length < lanes.length) return;
    for (const number of tooLate(delays)) {
      const lane = must(this.#lanes.get(number), "who is late has a lane");
      if (lane.isLate || lane.flow.hasEnded) continue;
      lane.isLate = true;
      askBack(this.#terms.control, number, true);
      this.#leave(lane);
    }
  }

  #delayOf(lane: Lane, now: number): ChannelDelay | null {
    const pace = lane.flow.paceAt(now);
    if (pace === null) return null;
    const { queuedBytes, givenBytes } = this.#loadOf(lane, now);
    const bytes = pace.movedBytes > 0 ? begunBytesOf(lane) / pace.movedBytes : 0;
    const bytesPerMs = bytes * pace.movedBytesPerMs;
    const leftBytes = queuedBytes + givenBytes;
    return { channel: lane.channel.number, leftBytes, bytesPerMs, backlogMs: pace.backlogMs };
  }

  #next({ channel: { number } }: Lane): Batch | null {
    return this.#work.take(number, TASK_BYTES, TASK_CHUNKS_MAX);
  }

  /**
   * What waits for another channel, if it pays that one which has nothing to do takes it: at once and
   * not to wait here, where the other one could take it back.
   */
  #nextOfOthers(lane: Lane): Batch | null {
    if (lane.inFlight.size > 0) return null;
    const help = this.#helpFor(lane, this.#paceOf(lane));
    if (help?.kind !== "take") return null;
    this.#work.move(help.channel, lane.channel.number, help.bytes);
    return this.#next(lane);
  }

  #give(lane: Lane, batch: Batch): void {
    const { channel } = lane;
    if (lane.startMs === 0) {
      lane.startMs = nowMs();
      lane.flow.begin(lane.startMs, channel.movedBytes);
    }
    const sending = channel.send(batch, this.#terms.taskOf(batch)).then((left) => {
      lane.bytes += bytesOf(batch) - bytesOf(left);
      this.#work.putBack(channel.number, left);
    });
    const running = sending.finally(() => lane.inFlight.delete(running));
    lane.inFlight.add(running);
    // Someone must always look at a rejection, also when another task is awaited.
    running.catch(() => {});
  }

  /** Waits for what another channel's thread was given and has not begun, if that pays. */
  async #wasGivenBack(lane: Lane): Promise<boolean> {
    const bytesPerMs = this.#paceOf(lane);
    const help = this.#helpFor(lane, bytesPerMs);
    if (help?.kind !== "ask-back") return false;
    const owner = must(this.#lanes.get(help.channel), "who is helped has a lane");
    // Asked again before it begins anything, two channels could pass a chunk to and fro for ever.
    if (begunBytesOf(owner) <= owner.askedAtBytes) return false;
    const { promise, resolve } = Promise.withResolvers<void>();
    const startMs = nowMs();
    owner.claims.push({ lane, bytesPerMs, settle: resolve });
    askBack(this.#terms.control, help.channel, true);
    await promise;
    lane.idleMs += nowMs() - startMs;
    return true;
  }

  #helpFor(lane: Lane, bytesPerMs: number): Help | null {
    const loads = this.#othersThan(lane);
    const { paysMs, chunkBytes } = this.#terms;
    return helpFor(bytesPerMs, loads, { paysMs, leastBytes: chunkBytes });
  }

  /** Who had nothing to do so far may be as fast as the fastest. */
  #paceOf(lane: Lane): number {
    const own = this.#loadOf(lane, nowMs()).bytesPerMs;
    if (own > 0) return own;
    return Math.max(0, ...this.#othersThan(lane).map(({ bytesPerMs }) => bytesPerMs));
  }

  #othersThan(lane: Lane): ChannelLoad[] {
    const now = nowMs();
    const others = [...this.#lanes.values()].filter((each) => {
      return each !== lane && each.channel.doom === null;
    });
    return others.map((each) => this.#loadOf(each, now));
  }

  #loadOf(lane: Lane, now: number): ChannelLoad {
    const { channel, startMs, idleMs } = lane;
    const ms = startMs === 0 ? 0 : now - startMs - idleMs;
    return {
      channel: channel.number,
      queuedBytes: this.#work.queuedBytes(channel.number),
      givenBytes: channel.progress.givenBytes,
      bytesPerMs: ms > 0 ? begunBytesOf(lane) / ms : 0,
    };
  }

  /** Shares what waits for a channel with those who asked, by how fast they are. */
  #settle(lane: Lane): void {
    const claims = lane.claims.splice(0);
    if (claims.length === 0) return;
    const { number } = lane.channel;
    askBack(this.#terms.control, number, false);
    lane.askedAtBytes = begunBytesOf(lane);
    const own = this.#loadOf(lane, nowMs()).bytesPerMs;
    const all = claims.reduce((sum, claim) => sum + claim.bytesPerMs, own);
    const bytes = this.#work.queuedBytes(number);
    for (const claim of claims) {
      this.#work.move(number, claim.lane.channel.number, (bytes * claim.bytesPerMs) / all);
      claim.settle();
    }
  }

  #laneOf(channel: SendChannel): Lane {
    const known = this.#lanes.get(channel.number);
    if (known !== undefined) return known;
    const lane: Lane = {
      channel,
      inFlight: new Set(),
      claims: [],
      askedAtBytes: -1,
      flow: new Flow(),
      isLate: false,
      bytes: 0,
      startMs: 0,
      endMs: 0,
      idleMs: 0,
    };
    this.#lanes.set(channel.number, lane);
    return lane;
  }
}

/** Guest memory that its thread has begun in this pass. */
function begunBytesOf({ channel, bytes }: Lane): number {
  return bytes + channel.progress.begunBytes;
}
