import { must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import { CounterRow, stopOf } from "./control.ts";
import { ARMED, BELL, type FaultDoor, isPresent, SEATS_MAX, takeQuestion } from "./fault-door.ts";
import { Idleness } from "./lane-idle.ts";
import { OPEN } from "./lane-words.ts";
import { noteLatency } from "./latencies.ts";
import { PageReceiver } from "./page-receiver.ts";
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
    this.#pages = new PageReceiver(setup, place, checksum);
    this.#share = share;
    this.#laneWords = words;
  }

  /** Serves until the source says that nothing follows. */
  serve(): void {
    const { words } = this.#door;
    const idleness = new Idleness();
    let from = 0;
    for (;;) {
      const bell = Atomics.load(words, BELL);
      let isBusy = false;
      const isOpen = Atomics.load(this.#laneWords, OPEN) !== 0;
      const question = isOpen ? takeQuestion(this.#door, { from, ...this.#share }) : null;
      if (question !== null) {
        isBusy = true;
        from = (question.seat + 1) % SEATS_MAX;
        this.#ask(question);
      }
      const found = this.#pages.poll();
      if (found === "end") return;
      if (found === "pages") this.#arrived(this.#pages.polledMs);
      if (isBusy || found === "pages") {
        idleness.wake();
        continue;
      }
      if (this.#waited.length > 0) {
        this.#arrived(null);
        this.#requireAnswer();
      }
      const isAsleep = Atomics.load(words, ARMED) === 0;
      const on = { words, index: BELL, value: bell };
      const isExpecting = this.#waited.length > 0;
      const sleptMs = idleness.rest(this.#stop, on, { isAsleep, isExpecting });
      this.#counters.add("waitMs", sleptMs);
    }
  }

  close(): void {
    this.#pages.close();
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
