import { assert } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { Way } from "./choice.ts";

/** What one frame cost, and how much memory it was made of. */
export interface SentFrame {
  readonly way: Way;
  /** Pages that are not zero, of which the payload was made. */
  readonly pageBytes: number;
  /** Before compression; less than the pages where there were deltas. */
  readonly payloadBytes: number;
  readonly wireBytes: number;
  /** From the end of the frame before to the end of this one, without what deltas took. */
  readonly elapsedMs: number;
  /** Of that, time in which the connection would take no more. */
  readonly blockedMs: number;
  /** When it had been written. */
  readonly atMs: number;
}

/** What a byte of payload takes: the thread that sends it, and the link behind it. */
export interface SendingMs {
  readonly workMs: number;
  readonly linkMs: number;
}

/** Less memory than this says little: a thread may have been set aside just then. */
const BYTES_MIN = 8 * MIB;

/** Memory that lies further back than this counts for less and less. */
const RECENT_BYTES = 32 * MIB;

/** Of a shorter payload, most of the time is the frame's. */
const PAYLOAD_BYTES_MIN = 128 * KIB;

/** Where a payload is less of its pages, it tells what deltas cost. */
const PAYLOAD_SHARE = 0.5;

/** What the link is judged by, whichever is reached first. */
const WINDOW_BYTES = 16 * MIB;
const WINDOW_MS = 200;

/** What a connection's buffers may swallow without being any faster for it; see `choice.ts`. */
const BUFFER_BYTES = 4 * MIB;

/** Of its time: a channel that is blocked for more goes as fast as its link drains. */
const BLOCKED_SHARE = 0.1;

/** A mean by bytes, in which what is long ago counts for little. */
export class RecentMean {
  #sum = 0;
  #bytes = 0;

  add(sum: number, bytes: number): void {
    const kept = RECENT_BYTES / (RECENT_BYTES + bytes);
    this.#sum = this.#sum * kept + sum;
    this.#bytes = this.#bytes * kept + bytes;
  }

  /** Null while it is of too little. */
  get perByte(): number | null {
    return this.#bytes < BYTES_MIN ? null : this.#sum / this.#bytes;
  }
}

/**
 * Knows what it costs a channel to send pages without deltas, from the frames in which it did: work
 * of its thread, by the way that they went, and the time in which its link drains them. A slow
 * destination is a slow link. While nothing but deltas is sent, what was known before holds: a link
 * that is given little looks fast.
 *
 * Pure: it is told what frames cost and reads no clock.
 */
export class SendingCost {
  readonly #work = { raw: new RecentMean(), codec: new RecentMean() };
  /** Bytes on the wire per byte of payload. */
  readonly #ratio = { raw: new RecentMean(), codec: new RecentMean() };
  readonly #drain = new Drain();

  learn(frame: SentFrame): void {
    const { way, pageBytes, payloadBytes, wireBytes, elapsedMs, blockedMs } = frame;
    assert(elapsedMs >= 0 && wireBytes > 0, "a frame costs no less than nothing");
    this.#drain.learn(frame);
    if (payloadBytes < PAYLOAD_BYTES_MIN || payloadBytes < pageBytes * PAYLOAD_SHARE) return;
    this.#work[way].add(Math.max(0, elapsedMs - blockedMs), payloadBytes);
    this.#ratio[way].add(wireBytes, payloadBytes);
  }

  /** Milliseconds per byte of payload that goes `way`; null while too little went so. */
  of(way: Way): SendingMs | null {
    const [workMs, ratio] = [this.#work[way].perByte, this.#ratio[way].perByte];
    if (workMs === null || ratio === null) return null;
    return { workMs, linkMs: ratio * this.#drain.msPerByte };
  }
}

/** How fast a channel's link drains. */
class Drain {
  #window = { wireBytes: 0, elapsedMs: 0, blockedMs: 0 };
  #sinceMs: number | null = null;
  /** Per byte on the wire; 0 for a link that was never waited for. */
  msPerByte = 0;

  learn({ wireBytes, elapsedMs, blockedMs, atMs }: SentFrame): void {
    const window = this.#window;
    this.#sinceMs ??= atMs - elapsedMs;
    window.wireBytes += wireBytes;
    window.elapsedMs += elapsedMs;
    window.blockedMs += blockedMs;
    if (window.wireBytes < WINDOW_BYTES && window.elapsedMs < WINDOW_MS) return;
    if (window.blockedMs > window.elapsedMs * BLOCKED_SHARE) {
      this.msPerByte = window.elapsedMs / window.wireBytes;
    } else if (window.wireBytes >= WINDOW_BYTES) {
      // Not waited for: it drains no slower than this, also while nothing was sent.
      const drainedBytes = window.wireBytes - BUFFER_BYTES;
      this.msPerByte = Math.min(this.msPerByte, (atMs - this.#sinceMs) / drainedBytes);
    }
    this.#window = { wireBytes: 0, elapsedMs: 0, blockedMs: 0 };
    this.#sinceMs = atMs;
  }
}
