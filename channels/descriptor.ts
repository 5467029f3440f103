import { readSync, writeSync } from "node:fs";
import { nowMs } from "../base/clock.ts";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";

/**
 * Synchronous reads and writes of a non-blocking descriptor, from the thread that owns it. A
 * blocked `write(2)` cannot be interrupted, not even by `worker.terminate()`, so a descriptor is
 * never put in blocking mode: on EAGAIN the thread spins briefly and then waits on the stop word
 * for a bounded time. Who sets the stop word and notifies it, ends every wait at once.
 */
export interface DescriptorOptions {
  readonly fd: number;
  /** For messages. */
  readonly channel: number;
  /** Word 0 is zero while the migration goes on. */
  readonly stop: Int32Array;
  /** No byte moved for so long: CHANNEL_STALLED. */
  readonly limitMs: number;
}

/** The transfer was stopped from outside; whoever stopped it knows why. Never leaves a thread. */
export class Stopped extends Error {
  override name = "Stopped";
}

/**
 * Attempts before the thread sleeps. Each costs some 3 to 5 us (a system call and an exception),
 * so a peer that drains a small buffer, as of a unix socket, is met without a sleep.
 */
const SPINS = 16;
const WAIT_MS_MIN = 0.05;
/** Long enough to cost an idle channel next to nothing, short enough not to be noticed. */
const WAIT_MS_MAX = 1;

/** Waits for a descriptor: first by spinning, then longer and longer, until `limitMs` are over. */
class Patience {
  readonly #options: DescriptorOptions;
  /** Idle channels may wait for ever at a frame's edge: the main channel watches the peer. */
  readonly #isBounded: boolean;
  #spins = 0;
  #sinceMs = 0;
  waitedMs = 0;

  constructor(options: DescriptorOptions, isBounded: boolean) {
    this.#options = options;
    this.#isBounded = isBounded;
  }

  /** Returns when it is worth trying again. Throws Stopped or CHANNEL_STALLED. */
  pause(direction: "read" | "write"): void {
    const { stop, limitMs, channel } = this.#options;
    if (Atomics.load(stop, 0) !== 0) throw new Stopped();
    this.#spins += 1;
    if (this.#spins <= SPINS) return;
    const now = nowMs();
    if (this.#sinceMs === 0) this.#sinceMs = now;
    this.waitedMs = now - this.#sinceMs;
    if (this.#isBounded && this.waitedMs > limitMs) {
      throw new MigrationError("CHANNEL_STALLED", { channel, direction, limitMs });
    }
    const waitMs = Math.min(WAIT_MS_MAX, WAIT_MS_MIN * (1 + (this.#spins - SPINS) / 64));
    if (Atomics.wait(stop, 0, 0, waitMs) !== "timed-out") throw new Stopped();
  }
}

/** Writes all of `source`. Returns the milliseconds slept. Throws CHANNEL_LOST or _STALLED. */
export function writeAll(options: DescriptorOptions, source: Uint8Array): number {
  let waitedMs = 0;
  let patience: Patience | null = null;
  for (let done = 0; done < source.length; ) {
    const count = transfer(options, () =>
      writeSync(options.fd, source, done, source.length - done),
    );
    if (count > 0) {
      done += count;
      waitedMs += patience?.waitedMs ?? 0;
      patience = null;
      continue;
    }
    patience ??= new Patience(options, true);
    patience.pause("write");
  }
  return waitedMs;
}

/**
 * Reads at least `least` bytes into `target`, and as many more as are there and fit. Returns the
 * bytes read and the milliseconds slept. An idle read (`isIdle`) may wait for its first byte without
 * a limit of its own. Throws CHANNEL_LOST or _STALLED.
 */
export function readSome(
  options: DescriptorOptions,
  target: Uint8Array,
  want: { least: number; isIdle: boolean },
): { bytes: number; waitedMs: number } {
  let waitedMs = 0;
  let patience: Patience | null = null;
  let done = 0;
  while (done < want.least) {
    const count = transfer(options, () =>
      readSync(options.fd, target, done, target.length - done, null),
    );
    if (count === 0)
      throw lost(
        options,
        done === 0 && want.isIdle ? "the other end closed it" : "it ended in the middle of a frame",
      );
    if (count > 0) {
      done += count;
      waitedMs += patience?.waitedMs ?? 0;
      patience = null;
      continue;
    }
    patience ??= new Patience(options, !(want.isIdle && done === 0));
    patience.pause("read");
  }
  return { bytes: done, waitedMs };
}

/** What the call moved, or -1 when the descriptor would block. */
function transfer(options: DescriptorOptions, call: () => number): number {
  try {
    return call();
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "EAGAIN" || errno === "EWOULDBLOCK") return -1;
    if (errno === "EINTR") return -1;
    if (errno === "EOF") return 0;
    throw lost(options, reasonOf(error));
  }
}

function lost(options: DescriptorOptions, reason: string): MigrationError {
  return new MigrationError("CHANNEL_LOST", { channel: options.channel, reason });
}
