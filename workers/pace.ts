/**
 * Holds all channels together to one rate, without a queue: a shared word says when the bytes sent
 * so far will have drained at the limit (the generic cell rate algorithm of ITU-T I.371). A worker
 * that is about to send moves the word on by its bytes and waits until the word as it found it is
 * less than a burst away.
 */
export const BURST_NS = 5_000_000n;

/** A pure step: what the word becomes and how long the sender must wait first. */
export function pace(
  word: bigint,
  now: bigint,
  bytes: number,
  bytesPerSecond: bigint,
): { word: bigint; waitNs: bigint } {
  // Rounded up: many small frames must not add up to more than the limit.
  const costNs = (BigInt(bytes) * 1_000_000_000n + bytesPerSecond - 1n) / bytesPerSecond;
  const start = word > now ? word : now;
  const waitNs = start - now - BURST_NS;
  return { word: start + costNs, waitNs: waitNs > 0n ? waitNs : 0n };
}

/** A limit that changes is noticed after this, however long the old one would have waited. */
const SLICE_MS = 50;

/** Waits until `bytes` may go. Returns the milliseconds waited; soon when `stop` becomes 1. */
export function waitForPace(pacing: BigInt64Array, stop: Int32Array, bytes: number): number {
  let waitedMs = 0;
  let limit = Atomics.load(pacing, 1);
  let leftMs = reserve(pacing, bytes, limit);
  while (leftMs > 0 && Atomics.load(stop, 0) === 0) {
    const sliceMs = Math.min(leftMs, SLICE_MS);
    Atomics.wait(stop, 0, 0, sliceMs);
    waitedMs += sliceMs;
    leftMs -= sliceMs;
    const now = Atomics.load(pacing, 1);
    if (now === limit) continue;
    limit = now;
    leftMs = reserve(pacing, bytes, limit);
  }
  return waitedMs;
}

/** Takes a place for `bytes` in the shared word. Returns the milliseconds until it comes. */
function reserve(pacing: BigInt64Array, bytes: number, limit: bigint): number {
  if (limit <= 0n) return 0;
  for (;;) {
    const found = Atomics.load(pacing, 0);
    const next = pace(found, process.hrtime.bigint(), bytes, limit);
    if (Atomics.compareExchange(pacing, 0, found, next.word) === found) {
      return Number(next.waitNs) / 1e6;
    }
  }
}
