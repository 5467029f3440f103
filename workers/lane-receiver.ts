import { must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import { openInbox } from "../channels/inbox.ts";
import { CounterRow, stopOf } from "./control.ts";
import { ARMED, BELL, type FaultDoor, isPresent, SEATS_MAX, takeQuestion } from "./fault-door.ts";
import { Idleness } from "./lane-idle.ts";
import { OPEN } from "./lane-words.ts";
import { noteLatency } from "./latencies.ts";
import { PageReceiver, RECEIVED_BYTES_MAX } from "./page-receiver.ts";
import type { ChannelPlace, ReceiveSetup } from "./protocol.ts";

/** The destination's end of a priority lane: asks for what vCPUs wait for, and places what comes. */
export class LaneReceiver {
  readonly #door: FaultDoor;
  readonly #counters: CounterRow;
  readonly #stop: Int32Array;
  readonly #channel: number;
  readonly #limitMs: number;
  readonly #pages: PageReceiver;
  readonly #share: { lane: number; lanes: number };
  readonly #laneWords: Int32Array;
  /** Asked for and not there yet. */
  #waited: { block: number; page: number; askedMs: number }[] = [];
  #requests = 0;
  /** The seat after the one that asked last: they take turns. */
  #from = 0;
  /** The bell as it was before nobody was found to ask: until it rings, nobody does. */
  #heard: number | null = null;

  constructor(
    setup: ReceiveSetup,
    place: ChannelPlace,
    {
      checksum,
      words,
      ...share
    }: { checksum: Checksum; words: Int32Array; lane: number; lanes: number },
  ) {
    this.#door = must(setup.door, "a lane serves a door");
    this.#stop = stopOf(setup.control, place.channel);
    this.#channel = place.channel;
    this.#limitMs = setup.channelTimeoutMs;
    this.#counters = new CounterRow(setup.control, place.channel - 1);
    const input = { channel: place.channel, fd: place.readFd, stop: this.#stop };
    const inbox = openInbox({ ...input, limitMs: this.#limitMs }, RECEIVED_BYTES_MAX);
    this.#pages = new PageReceiver(setup, place, checksum, inbox);
    this.#share = share;
    this.#laneWords = words;
  }

  /** Serves until the source says that nothing follows. */
  serve(): void {
    const { words } = this.#door;
    const idleness = new Idleness(this.#stop);
    for (;;) {
      const hasAsked = this.#askNext();
      const found = this.#pages.poll();
      if (found === "end") return;
      if (found === "pages") this.#arrived(this.#pages.polledMs);
      if (hasAsked || found === "pages") {
        idleness.wake();
        continue;
      }
      const isAsleep = Atomics.load(words, ARMED) === 0;
      const isExpecting = this.#waited.length > 0;
      if (isExpecting && idleness.looksAgain()) continue;
      if (isExpecting) {
        this.#arrived(null);
        this.#requireAnswer();
      }
      const value = this.#heard ?? Atomics.load(words, BELL);
      const on = { words, index: BELL, value };
      this.#counters.add("waitMs", idleness.rest(on, { isAsleep, isExpecting }));
    }
  }

  close(): void {
    this.#pages.close();
  }

  /** Asks for the page of whoever has rung and comes next. */
  #askNext(): boolean {
    const bell = Atomics.load(this.#door.words, BELL);
    if (bell === this.#heard || Atomics.load(this.#laneWords, OPEN) === 0) return false;
    const question = takeQuestion(this.#door, { from: this.#from, ...this.#share });
    if (question === null) {
      this.#heard = bell;
      return false;
    }
    this.#from = (question.seat + 1) % SEATS_MAX;
    this.#ask(question);
    return true;
  }

  #ask({ block, page, sinceMs }: { block: number; page: number; sinceMs: number }): void {
    this.#pages.request({ block, page, number: this.#requests });
    this.#requests += 1;
    const askedMs = nowMs();
    noteLatency(this.#door.latencies.queued, askedMs - sinceMs);
    this.#waited.push({ block, page, askedMs });
  }

  /**
   * A source answers at once, whatever else it sends: one that does not for so long is gone, or the way
   * to it, and a guest would wait although other channels live.
   */
  #requireAnswer(): void {
    const oldest = this.#waited[0];
    if (oldest === undefined || nowMs() - oldest.askedMs < this.#limitMs) return;
    throw new MigrationError("CHANNEL_STALLED", {
      channel: this.#channel,
      direction: "read",
      limitMs: this.#limitMs,
    });
  }

  /** A page may also come with the others, nobody knows when: what is there is waited for no more. */
  #arrived(atMs: number | null): void {
    const { wire, installed } = this.#door.latencies;
    this.#waited = this.#waited.filter(({ block, page, askedMs }) => {
      if (!isPresent(this.#door, block, page)) return true;
      if (atMs !== null) {
        noteLatency(wire, Math.max(0, atMs - askedMs));
        noteLatency(installed, nowMs() - atMs);
      }
      return false;
    });
  }
}
