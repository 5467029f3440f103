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
  const costNs = (BigInt(bytes) * 1_000_000_000n) / bytesPerSecond;
  const start = word > now ? word : now;
  const waitNs = start - now - BURST_NS;
  return { word: start + costNs, waitNs: waitNs > 0n ? waitNs : 0n };
}

/** Waits until `bytes` may go. Returns the milliseconds waited; soon when `stop` becomes 1. */
export function waitForPace(pacing: BigInt64Array, stop: Int32Array, bytes: number): number {
  const limit = Atomics.load(pacing, 1);
  if (limit <= 0n) return 0;
  let waitNs: bigint;
  for (;;) {
    const found = Atomics.load(pacing, 0);
    const next = pace(found, process.hrtime.bigint(), bytes, limit);
    waitNs = next.waitNs;
    if (Atomics.compareExchange(pacing, 0, found, next.word) === found) break;
  }
  const waitMs = Number(waitNs) / 1e6;
  if (waitMs > 0) Atomics.wait(stop, 0, 0, waitMs);
  return waitMs;
}
