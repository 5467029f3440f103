import { assert } from "../base/assert.ts";

/** What a channel did in a pass over the dirty memory. */
export interface ChannelPace {
  readonly channel: number;
  /** Guest memory that it dealt with. */
  readonly bytes: number;
  /** Until the destination had applied it; time without work is not counted. */
  readonly ms: number;
}

/** A shorter pass says more of the scheduler and of round trips than of channels. */
const PASS_MS_MIN = 50;

/** Of what a pass says, so much is believed at once: a channel is known after two or three. */
const TRUST = 0.5;

/**
 * Shares change only where the slowest channel would hold a round up by a quarter: what is moved is
 * sent without its cached versions once, and smaller differences are evened out within a round.
 */
const PAYS = 1.25;

/** Below this part of the average a channel is slow. */
const SLOW = 0.5;

/**
 * How fast channels are beside each other: a pure memory of passes. Weights add up to 1. They are
 * relative, for the pages of one round take another time than those of the next (zeros, deltas), but
 * the same in all channels.
 */
export type Weights = ReadonlyMap<number, number>;

/** All alike: nothing is known. */
export function evenWeights(channels: readonly number[]): Weights {
  return new Map(channels.map((channel) => [channel, 1 / channels.length]));
}

/** The weights of these channels, which are fewer or more than were known: a new one is average. */
export function weightsOf(weights: Weights, channels: readonly number[]): Weights {
  const known = channels.flatMap((channel) => weights.get(channel) ?? []);
  if (known.length === 0) return evenWeights(channels);
  const average = known.reduce((sum, weight) => sum + weight, 0) / known.length;
  const all = channels.map((channel) => weights.get(channel) ?? average);
  const sum = all.reduce((total, weight) => total + weight, 0);
  return new Map(channels.map((channel, index) => [channel, (all[index] as number) / sum]));
}

/** What is known after a pass. Only those that had work are weighed anew, among each other. */
export function learn(weights: Weights, paces: readonly ChannelPace[]): Weights {
  const seen = paces.filter(({ channel, bytes, ms }) => {
    return weights.has(channel) && bytes > 0 && ms > 0;
  });
  if (seen.length < 2 || Math.max(...seen.map(({ ms }) => ms)) < PASS_MS_MIN) return weights;
  const rates = seen.map(({ bytes, ms }) => bytes / ms);
  const rateSum = rates.reduce((sum, rate) => sum + rate, 0);
  const weightSum = seen.reduce((sum, { channel }) => sum + (weights.get(channel) ?? 0), 0);
  const learned = new Map(weights);
  for (const [index, { channel }] of seen.entries()) {
    const before = weights.get(channel) ?? 0;
    const found = (weightSum * (rates[index] as number)) / rateSum;
    learned.set(channel, before + TRUST * (found - before));
  }
  return learned;
}

/**
 * How many of `slots` each channel should have, or null where those that it has will do. Everyone
 * keeps one at least: a slow channel is probed by it, and shows when it has become fast again.
 */
export function sharesFor(
  weights: Weights,
  shares: ReadonlyMap<number, number>,
  slots: number,
): Map<number, number> | null {
  const wanted = apportioned(weights, slots);
  const isElsewhere = [...shares.keys()].some((channel) => !weights.has(channel));
  const lacksOne = [...weights.keys()].some((channel) => !shares.has(channel));
  if (isElsewhere || lacksOne) return wanted;
  return slowness(weights, shares) > PAYS * slowness(weights, wanted) ? wanted : null;
}

/** How long a round takes by the channel that is the last, in no unit. */
function slowness(weights: Weights, shares: ReadonlyMap<number, number>): number {
  const times = [...weights].map(([channel, weight]) => (shares.get(channel) ?? 0) / weight);
  return Math.max(...times);
}

/** Whole slots, one at the least: each further one goes where it makes the round the least longer. */
function apportioned(weights: Weights, slots: number): Map<number, number> {
  assert(slots >= weights.size, "everyone can have a slot");
  const shares = new Map([...weights.keys()].map((channel) => [channel, 1]));
  for (let given = weights.size; given < slots; given += 1) {
    let best = { channel: 0, time: Number.POSITIVE_INFINITY, slots: 0 };
    for (const [channel, weight] of weights) {
      const count = 1 + (shares.get(channel) ?? 0);
      const time = count / weight;
      if (time < best.time) best = { channel, time, slots: count };
    }
    shares.set(best.channel, best.slots);
  }
  return shares;
}

/** A channel in the middle of a pass. */
export interface ChannelLoad {
  readonly channel: number;
  /** Guest memory that waits for it. */
  readonly queuedBytes: number;
  /** That its thread was given and has not begun. */
  readonly givenBytes: number;
  /** So far, in this pass. */
  readonly bytesPerMs: number;
}

/** What a channel without work does: take bytes that wait for another, or have some given back. */
export type Help =
  | { readonly kind: "take"; readonly channel: number; readonly bytes: number }
  | { readonly kind: "ask-back"; readonly channel: number; readonly bytes: number };

/**
 * Whom a channel that has nothing left to do helps: the one that would be the last. Null where the
 * pass would end less than `paysMs` sooner for it, or it would not even get `leastBytes`, a chunk.
 */
export function helpFor(
  bytesPerMs: number,
  others: readonly ChannelLoad[],
  { paysMs, leastBytes }: { readonly paysMs: number; readonly leastBytes: number },
): Help | null {
  const [last] = others
    .map((load) => ({ load, leftMs: leftMsOf(load) }))
    .toSorted((a, b) => b.leftMs - a.leftMs);
  if (last === undefined || bytesPerMs <= 0) return null;
  const { load, leftMs } = last;
  const { channel, queuedBytes, givenBytes } = load;
  // Both end at the same time.
  const share = bytesPerMs / (bytesPerMs + load.bytesPerMs);
  if (Number.isNaN(leftMs) || leftMs * share < paysMs) return null;
  const bytes = (queuedBytes + givenBytes) * share;
  if (bytes < leastBytes) return null;
  return { kind: queuedBytes > 0 ? "take" : "ask-back", channel, bytes };
}

/** One that has not moved anything yet would take for ever, if it has anything to do. */
function leftMsOf({ queuedBytes, givenBytes, bytesPerMs }: ChannelLoad): number {
  const bytes = queuedBytes + givenBytes;
  return bytes === 0 ? 0 : bytes / bytesPerMs;
}

/** A channel in the middle of a pass, and what of it is on its way. */
export interface ChannelDelay {
  readonly channel: number;
  /** Guest memory that waits for it or that its thread has not begun. */
  readonly leftBytes: number;
  /** As it goes now, the first burst into empty buffers not counted. */
  readonly bytesPerMs: number;
  /** How long what it has written takes until it has arrived. */
  readonly backlogMs: number;
}

/**
 * Slow channels that should begin nothing more in this pass: what they have written already, and what
 * the system keeps for them, arrives no sooner than the others could be done with all that is left.
 */
export function tooLate(delays: readonly ChannelDelay[]): number[] {
  const rateSum = delays.reduce((sum, { bytesPerMs }) => sum + bytesPerMs, 0);
  const leftBytes = delays.reduce((sum, each) => sum + each.leftBytes, 0);
  return delays.flatMap(({ channel, bytesPerMs, backlogMs }) => {
    if (bytesPerMs * delays.length >= SLOW * rateSum) return [];
    const others = delays.filter((each) => each.channel !== channel);
    const restMs = leftBytes / (rateSum - bytesPerMs);
    const theirsMs = Math.min(...others.map((each) => each.backlogMs));
    return backlogMs >= restMs + theirsMs ? [channel] : [];
  });
}

/**
 * Channels that get nothing to do in a pass of so few chunks: slow ones of which each would still
 * be at its first chunk when the others are done. A pause of the guest would wait for it.
 */
export function spared(weights: Weights, chunks: number): Set<number> {
  const slow = [...weights].filter(([, weight]) => {
    return weight * weights.size < SLOW && weight * chunks < 1;
  });
  return new Set(slow.map(([channel]) => channel));
}
