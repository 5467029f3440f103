import { must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { asMigrationError, MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import { Stopped } from "../channels/descriptor.ts";
import { openInbox } from "../channels/inbox.ts";
import { type Control, CounterRow, moveCounters, stopOf } from "./control.ts";
import {
  ARMED,
  BELL,
  type FaultDoor,
  isPresent,
  ringBell,
  takeQuestion,
  type Wanted,
} from "./fault-door.ts";
import { Idleness, type Rest } from "./lane-idle.ts";
import {
  endLane,
  FETCHES,
  failLane,
  goesOn,
  isOver,
  isServerGone,
  type LaneState,
  leaveLane,
  legOf,
  MAY_ASK,
  READ_SEQUENCE,
  REQUESTS,
  SEAT,
  takeLane,
  Waited,
  WRITE_SEQUENCE,
} from "./lane-state.ts";
import { OPEN } from "./lane-words.ts";
import { noteLatency } from "./latencies.ts";
import { PageReceiver, RECEIVED_BYTES_MAX } from "./page-receiver.ts";
import type { ChannelPlace, ReceiveSetup } from "./protocol.ts";
import { threadNumber } from "./thread-number.ts";

/** A vCPU serves its lane for no longer, whatever comes that others want. */
const BRINGING_MS = 5;

export interface LaneShare {
  readonly state: LaneState;
  /** Which of how many it is: they share the seats. */
  readonly lane: number;
  readonly lanes: number;
}

/**
 * The destination's end of a priority lane, as one thread has it: asks for what vCPUs wait for, and places
 * what comes. Several threads have one of the same lane; see `lane-state.ts`.
 */
export class LaneReceiver {
  readonly #door: FaultDoor;
  readonly #control: Control;
  readonly #counters: CounterRow;
  readonly #stop: Int32Array;
  readonly #channel: number;
  readonly #limitMs: number;
  readonly #pages: PageReceiver;
  readonly #share: { lane: number; lanes: number };
  readonly #state: LaneState;
  readonly #waited: Waited;
  readonly #idleness: Idleness;
  readonly #thread = threadNumber() || 1;
  /** Made once: `#arrived` needs it with every page. */
  readonly #isThere = (block: number, page: number): boolean => isPresent(this.#door, block, page);
  readonly #struck = (askedMs: number): void => this.#note(askedMs);
  #arrivedMs: number | null = null;
  /** What a thread that plays both ends does at each look of `bring`; see `lane-rehearsal.ts`. */
  readonly #meanwhile: (() => void) | null;
  /** As the lane's own thread saw them last. */
  #fetches = 0;
  /** The bell as it was before nobody was found to ask: until it rings, nobody does. */
  #heard: number | null = null;
  /** For a vCPU: pages lay here already when it came last, of which it may have wanted one. */
  #comesUnasked = true;

  constructor(
    setup: ReceiveSetup,
    place: ChannelPlace,
    {
      checksum,
      state,
      meanwhile = null,
      ...share
    }: LaneShare & { checksum: Checksum; meanwhile?: (() => void) | null },
  ) {
    this.#meanwhile = meanwhile;
    this.#door = must(setup.door, "a lane serves a door");
    this.#control = setup.control;
    this.#stop = stopOf(setup.control, place.channel);
    this.#channel = place.channel;
    this.#limitMs = setup.channelTimeoutMs;
    this.#counters = new CounterRow(setup.control, place.channel - 1);
    const input = { channel: place.channel, fd: place.readFd, stop: this.#stop };
    const inbox = openInbox({ ...input, limitMs: this.#limitMs }, RECEIVED_BYTES_MAX);
    this.#pages = new PageReceiver(setup, place, checksum, inbox);
    this.#share = share;
    this.#state = state;
    this.#waited = new Waited(state);
    this.#idleness = new Idleness(this.#stop);
  }

  /** For the lane's own thread: serves until the source says that nothing follows. `words`: lane-words.ts. */
  serve(words: Int32Array): void {
    for (let rest = this.look(words); rest !== "end"; rest = this.look(words)) this.rest(rest);
  }

  /** One look of `serve`, and how to wait for the next; null where that is to follow at once. */
  look(words: Int32Array): Rest | "end" | null {
    const bell = Atomics.load(this.#door.words, BELL);
    return this.#take() ? this.#serveOnce(words) : this.#leaveToOthers(bell);
  }

  /** What `serve` does between two looks. */
  rest(rest: Rest | null): void {
    if (rest !== null) this.#counters.add("waitMs", this.#idleness.rest(rest));
  }

  /**
   * For the thread of a vCPU that has asked: serves connection `leg` until its page is there, as long as it
   * pays to look at once; then the lane's own thread is to. False when another thread serves, which must be
   * told that somebody asks.
   */
  bring(leg: number, what: Wanted): boolean {
    if (!this.#take()) return false;
    try {
      const isMine = legOf(this.#state) === leg;
      const mayServe = isMine && this.#state.words[MAY_ASK] !== 0 && goesOn(this.#state);
      if (mayServe) this.#bring(what);
    } catch (error) {
      if (!(error instanceof Stopped)) failLane(this.#state, asMigrationError(error));
    }
    const { words } = this.#state;
    words[FETCHES] = ((words[FETCHES] as number) + 1) | 0;
    const isLeft = this.#waited.count > 0 || !goesOn(this.#state);
    this.#leave();
    // Who asked meanwhile found it served, and sleeps.
    if (isLeft || Atomics.load(this.#door.words, BELL) !== this.#heard) ringBell(this.#door);
    return true;
  }

  close(): void {
    this.#pages.close();
  }

  #bring({ block, page }: Wanted): void {
    const idleness = this.#idleness;
    const endMs = nowMs() + BRINGING_MS;
    idleness.wake();
    // A look before the request costs what a guest waits for, and is in vain unless pages come unasked.
    if (!this.#comesUnasked) this.#askNext();
    for (let isFirst = true; ; isFirst = false) {
      const found = this.#pages.pollAll();
      if (isFirst) this.#comesUnasked = found === "pages";
      if (found === "pages") this.#arrived(this.#pages.polledMs);
      if (found === "end") {
        endLane(this.#state);
        return;
      }
      this.#meanwhile?.();
      const isDone = this.#isThere(block, page);
      const hasAsked = this.#askNext(); // Others, too, and what is there already is asked for no more.
      if (isDone) {
        this.#arrived(null);
        return;
      }
      const isBusy = hasAsked || found === "pages";
      if (isBusy) idleness.wake();
      const looksAgain = isBusy ? nowMs() < endMs : idleness.looksAgain();
      if (looksAgain) continue;
      this.#arrived(null);
      return;
    }
  }

  #serveOnce(words: Int32Array): Rest | "end" | null {
    const door = this.#door;
    try {
      const isFetched = this.#noteFetches();
      if (isOver(this.#state)) return "end";
      this.#state.words[MAY_ASK] = Atomics.load(words, OPEN);
      const hasAsked = this.#state.words[MAY_ASK] !== 0 && this.#askNext();
      const found = this.#pages.pollAll();
      if (found === "end") return "end";
      if (found === "pages") this.#arrived(this.#pages.polledMs);
      const isExpecting = this.#waited.count > 0;
      const isLeftToThis = isFetched && isExpecting; // By a vCPU, whose answer comes any moment.
      if (hasAsked || found === "pages" || isLeftToThis) {
        this.#idleness.wake();
        return null;
      }
      if (isExpecting && this.#idleness.looksAgain()) return null;
      if (isExpecting) {
        this.#arrived(null);
        this.#requireAnswer();
      }
      // Looks for what vCPUs fetch themselves would take the processor from them.
      const isLeftToOthers = isFetched && !isExpecting;
      const isAsleep = Atomics.load(door.words, ARMED) === 0 || isLeftToOthers;
      const bell = this.#heard ?? Atomics.load(door.words, BELL);
      return { on: this.#onBell(bell), isAsleep, isExpecting };
    } finally {
      this.#leave();
    }
  }

  /** Rings are for the lane's own thread where a vCPU serves and leaves something. */
  #leaveToOthers(bell: number): Rest {
    if (isServerGone(this.#state)) {
      const reason = "the thread of a vCPU that served it was ended";
      throw new MigrationError("WORKER_DIED", { channel: this.#channel, reason });
    }
    return { on: this.#onBell(bell), isAsleep: true, isExpecting: false };
  }

  /** Whether vCPUs have fetched since it was asked last. What they count is this channel's. */
  #noteFetches(): boolean {
    const fetches = this.#state.words[FETCHES] as number;
    if (fetches === this.#fetches) return false;
    this.#fetches = fetches;
    moveCounters(this.#door.lanes?.receive.control, this.#control, this.#channel - 1);
    return true;
  }

  #onBell(value: number): Rest["on"] {
    return { words: this.#door.words, index: BELL, value };
  }

  #take(): boolean {
    if (!takeLane(this.#state, this.#thread)) return false;
    const { words } = this.#state;
    this.#pages.readSequence = (words[READ_SEQUENCE] as number) >>> 0;
    this.#pages.writeSequence = (words[WRITE_SEQUENCE] as number) >>> 0;
    return true;
  }

  #leave(): void {
    const { words } = this.#state;
    words[READ_SEQUENCE] = this.#pages.readSequence;
    words[WRITE_SEQUENCE] = this.#pages.writeSequence;
    leaveLane(this.#state);
  }

  /** Asks for the page of whoever has rung and comes next. */
  #askNext(): boolean {
    const bell = Atomics.load(this.#door.words, BELL);
    if (bell === this.#heard) return false;
    const from = this.#state.words[SEAT] as number;
    const question = takeQuestion(this.#door, { from, ...this.#share });
    if (question === null) {
      this.#heard = bell;
      return false;
    }
    this.#state.words[SEAT] = question.seat + 1;
    this.#ask(question);
    return true;
  }

  #ask({ block, page, sinceMs }: { block: number; page: number; sinceMs: number }): void {
    const { words } = this.#state;
    const number = words[REQUESTS] as number;
    words[REQUESTS] = number + 1;
    this.#pages.request({ block, page, number });
    const askedMs = nowMs();
    noteLatency(this.#door.latencies.queued, askedMs - sinceMs);
    this.#waited.add(block, page, askedMs);
  }

  /**
   * A source answers at once, whatever else it sends: one that does not for so long is gone, or the way
   * to it, and a guest would wait although other channels live.
   */
  #requireAnswer(): void {
    const { oldestMs } = this.#waited;
    if (oldestMs === null || nowMs() - oldestMs < this.#limitMs) return;
    throw new MigrationError("CHANNEL_STALLED", {
      channel: this.#channel,
      direction: "read",
      limitMs: this.#limitMs,
    });
  }

  /** A page may also come with the others, nobody knows when: what is there is waited for no more. */
  #arrived(atMs: number | null): void {
    this.#arrivedMs = atMs;
    this.#waited.strike(this.#isThere, this.#struck);
  }

  #note(askedMs: number): void {
    const atMs = this.#arrivedMs;
    if (atMs === null) return;
    const { wire, installed } = this.#door.latencies;
    noteLatency(wire, Math.max(0, atMs - askedMs));
    noteLatency(installed, nowMs() - atMs);
  }
}
