import { readSync, writeSync, writevSync } from "node:fs";
import { nowMs } from "../base/clock.ts";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";
import { Spinning } from "./spinning.ts";

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
  /**
   * The system keeps megabytes between the two ends, as for TCP: more than is moved while a thread
   * sleeps. A thread then sleeps at once, which costs the least, and the other end goes on.
   */
  readonly isDeep?: boolean;
}

const NOTHING = new Uint8Array(0);

/** The transfer was stopped from outside; whoever stopped it knows why. Never leaves a thread. */
export class Stopped extends Error {
  override name = "Stopped";
}

/**
 * Attempts before the thread sleeps, where the system keeps little between the ends (208 KiB in a
 * unix socket): a peer that moves on within them is met without a sleep. An attempt costs some 3 us
 * (a system call and an exception), so all of them last longer than the peer's shortest sleep.
 */
const SPINS = 48;
/** After attempts that came to nothing, up to so many waits begin with a sleep: a slow link. */
const SKIPPED_MAX = 64;

/** The system adds some 50 us to each. */
const WAIT_MS_MIN = 0.05;
/** A deep channel holds what comes meanwhile (0.5 MB at 25 Gb/s), so half as many waits do. */
const DEEP_WAIT_MS_MIN = 0.15;
/** Long enough to cost an idle channel next to nothing, short enough not to be noticed. */
const WAIT_MS_MAX = 1;
/** A sleep is no longer than this share of what was waited already: it is not noticed beside it. */
const WAIT_SHARE = 1 / 16;

/** By the descriptor's options, which live as long as the thread owns it. */
const SPINNING = new WeakMap<DescriptorOptions, Spinning>();

/** Waits for a descriptor: first by spinning, then longer and longer, until `limitMs` are over. */
class Patience {
  readonly #options: DescriptorOptions;
  /** Idle channels may wait for ever at a frame's edge: the main channel watches the peer. */
  readonly #isBounded: boolean;
  readonly #spinning: Spinning | null;
  #spinsLeft: number;
  #sinceMs = 0;

  constructor(options: DescriptorOptions, isBounded: boolean) {
    this.#options = options;
    this.#isBounded = isBounded;
    this.#spinning = options.isDeep === true ? null : spinningOf(options);
    this.#spinsLeft = this.#spinning?.begin() ? SPINS : 0;
  }

  /** Returns when it is worth trying again. Throws Stopped or CHANNEL_STALLED. */
  pause(direction: "read" | "write"): void {
    const { stop, limitMs, channel, isDeep } = this.#options;
    if (Atomics.load(stop, 0) !== 0) throw new Stopped();
    if (this.#spinsLeft > 0) {
      this.#spinsLeft -= 1;
      if (this.#spinsLeft === 0) this.#spinning?.failed();
      return;
    }
    const now = nowMs();
    if (this.#sinceMs === 0) this.#sinceMs = now;
    if (this.#isBounded && now - this.#sinceMs > limitMs) {
      throw new MigrationError("CHANNEL_STALLED", { channel, direction, limitMs });
    }
    const shortestMs = isDeep === true ? DEEP_WAIT_MS_MIN : WAIT_MS_MIN;
    const waitMs = Math.min(WAIT_MS_MAX, Math.max(shortestMs, WAIT_SHARE * (now - this.#sinceMs)));
    if (Atomics.wait(stop, 0, 0, waitMs) !== "timed-out") throw new Stopped();
  }

  /** Bytes moved. Returns the milliseconds slept. */
  end(): number {
    if (this.#spinsLeft > 0) this.#spinning?.paid();
    return this.#sinceMs === 0 ? 0 : nowMs() - this.#sinceMs;
  }
}

function spinningOf(options: DescriptorOptions): Spinning {
  const known = SPINNING.get(options);
  if (known !== undefined) return known;
  const spinning = new Spinning(SKIPPED_MAX);
  SPINNING.set(options, spinning);
  return spinning;
}

/**
 * Writes all of `source`, and of `second` behind it as if they were one. Returns the milliseconds
 * slept. Throws CHANNEL_LOST or _STALLED.
 */
export function writeAll(
  options: DescriptorOptions,
  source: Uint8Array,
  second: Uint8Array = NOTHING,
): number {
  const bytes = source.length + second.length;
  let waitedMs = 0;
  let patience: Patience | null = null;
  for (let done = 0; done < bytes; ) {
    const count = writeOnce(options, source, second, done);
    if (count > 0) {
      done += count;
      waitedMs += patience?.end() ?? 0;
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
    const count = readOnce(options, target, done);
    if (count === 0)
      throw lost(
        options,
        done === 0 && want.isIdle ? "the other end closed it" : "it ended in the middle of a frame",
      );
    if (count > 0) {
      done += count;
      waitedMs += patience?.end() ?? 0;
      patience = null;
      continue;
    }
    patience ??= new Patience(options, !(want.isIdle && done === 0));
    patience.pause("read");
  }
  return { bytes: done, waitedMs };
}

/** Reads what is there now; 0 when nothing is. Throws CHANNEL_LOST. */
export function readNow(options: DescriptorOptions, target: Uint8Array): number {
  const count = readOnce(options, target, 0);
  if (count === 0) throw lost(options, "the other end closed it");
  return Math.max(0, count);
}

/** What of both was written, from byte `done` on, or -1: see `notMoved`. */
function writeOnce(
  options: DescriptorOptions,
  source: Uint8Array,
  second: Uint8Array,
  done: number,
): number {
  const { fd } = options;
  const left = source.length + second.length - done;
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  try {
    if (second.length === 0) return writeSync(fd, source, done, left);
    if (done < source.length) return writevSync(fd, [source.subarray(done), second]);
    return writeSync(fd, second, done - source.length, left);
  } catch (error) {
    return notMoved(options, error);
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
}

/** What was read, from byte `done` of `target` on: 0 at the end, or -1: see `notMoved`. */
function readOnce(options: DescriptorOptions, target: Uint8Array, done: number): number {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  try {
    return readSync(options.fd, target, done, target.length - done, null);
  } catch (error) {
    return notMoved(options, error);
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
}

/** -1 when the descriptor would block, which is common: callers keep no stack for it. */
function notMoved(options: DescriptorOptions, error: unknown): number {
  const errno = errnoOf(error);
  if (errno === "EAGAIN" || errno === "EWOULDBLOCK") return -1;
  if (errno === "EINTR") return -1;
  if (errno === "EOF") return 0;
  throw lost(options, reasonOf(error));
}

function lost(options: DescriptorOptions, reason: string): MigrationError {
  return new MigrationError("CHANNEL_LOST", { channel: options.channel, reason });
}
