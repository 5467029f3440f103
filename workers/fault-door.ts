import { nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { VCPUS_MAX } from "../channels/frame.ts";
import type { FaultsMessage } from "../channels/messages.ts";
import { lowestBit, popcount } from "./dirty-words.ts";
import { closeGate, openGate } from "./gate.ts";
import type { LaneState } from "./lane-state.ts";
import { createLatencies, type Latencies, latencyFigures, noteLatency } from "./latencies.ts";
import type { ReceiveSetup } from "./protocol.ts";

/**
 * Where a vCPU that touches a page which is not there yet asks for it, and is woken when it comes.
 *
 * Plain data over shared memory, so that any thread of a host can use it, and no event loop or task
 * queue lies between the one that asks and the lane's thread that answers. Each vCPU has a seat of
 * its own, so what can be asked for at once is bounded, and the lane serves the seats in turn.
 *
 *   words   BELL     whoever asks rings it; the lane sleeps on it
 *           ARMED    0 until it is known which pages are missing; 1 from then on
 *           MISSING  pages of all blocks that are not there
 *           DROPPED  pages that came once more, and were not written
 *           LINK     whether what is missing comes: see `FaultLink`
 *           SEATED   seats that somebody has asked from, and those before them
 *   seats   by seat: state, block, page, and the question for which it keeps the gate closed, or 0
 *   sinceMs, blockedMs   by seat: when its question was asked, and all its waits together
 *   latencies            how long pages were waited for in all, and in the parts of it:
 *                        queued      until the request was written
 *                        wire        until the answer began to come, the source's work included
 *                        installed   until it was placed, and who waits was woken
 *
 * The state of a seat is the number of its question, and in the two lowest bits what becomes of it:
 *
 *   IDLE      nobody is to ask it: it was taken, or its page is there
 *   WRITING   block and page are being written, and nobody may use them
 *   ASKED     who makes just this word IDLE has taken it, and may use what it read before
 *
 *   vCPU   IDLE or ASKED, n  ->  WRITING, n + 1  ->  ASKED, n + 1; once its page is there IDLE, n + 1
 *   lane   ASKED, n  ->  IDLE, n
 *   askAgain   IDLE, n  ->  ASKED, n
 *
 * So a question that follows another while a lane looks is neither lost nor mixed up with it.
 */
export interface FaultDoor {
  readonly words: Int32Array;
  readonly seats: Int32Array;
  readonly sinceMs: Float64Array;
  readonly blockedMs: Float64Array;
  readonly latencies: {
    readonly total: Latencies;
    readonly queued: Latencies;
    readonly wire: Latencies;
    readonly installed: Latencies;
  };
  /** Of this end's threads, see `workers/gate.ts`: closed while anybody waits. */
  readonly gate: Int32Array;
  readonly blocks: readonly FaultBlock[];
  /** For vCPUs that fetch pages themselves; see `own-faults.ts`. */
  readonly lanes?: DoorLanes;
}

export interface DoorLanes {
  readonly states: readonly LaneState[];
  /** As the lanes' own threads have it, but for the control: who fetches goes by this one. */
  readonly receive: Omit<ReceiveSetup, "door">;
}

/** A bit per wire page in each table. */
export interface FaultBlock {
  readonly name: string;
  /** Wire page. */
  readonly pageBytes: number;
  readonly pageCount: number;
  /** The page is there: it is the guest's, and nobody else writes it any more. */
  readonly present: Int32Array;
  /** Somebody is placing it, or has. Who sets the bit places the page, and nobody else ever does. */
  readonly claimed: Int32Array;
  /** It was asked for. */
  readonly requested: Int32Array;
}

export const BELL = 0;
export const ARMED = 1;
export const MISSING = 2;
export const DROPPED = 3;
const LINK = 4;
const SEATED = 5;
const WORDS = 16;

/** More pages than a word of the door can count would be taken for fewer. */
export const MISSING_MAX = 2 ** 32 - 1;

const LINKS = ["open", "paused", "given-up"] as const;

/**
 * What becomes of pages that are missing. `open`: they come. `paused`: the link is broken, and they
 * come once the migration is recovered. `given-up`: they never come, and this stays so.
 */
export type FaultLink = (typeof LINKS)[number];

/** Nobody is woken when the link is given up: who waits looks so often. */
const LOOK_MS = 100;

export const SEATS_MAX = VCPUS_MAX;
const SEAT_WORDS = 4;
const SEAT_IDLE = 0;
const SEAT_ASKED = 1;
const SEAT_WRITING = 2;
const SEAT_STATE = 0b11;
const SEAT_GATE = 3;
/** From a question's number to the next one. It may wrap. */
const SEAT_NEXT = 4;

export function createFaultDoor(
  blocks: readonly { name: string; pageBytes: number; pageCount: number }[],
  gate: Int32Array,
  lanes?: DoorLanes,
): FaultDoor {
  const words = (count: number): Int32Array => new Int32Array(new SharedArrayBuffer(count * 4));
  const doubles = (count: number): Float64Array =>
    new Float64Array(new SharedArrayBuffer(count * 8));
  return {
    words: words(WORDS),
    seats: words(SEATS_MAX * SEAT_WORDS),
    sinceMs: doubles(SEATS_MAX),
    blockedMs: doubles(SEATS_MAX),
    latencies: {
      total: createLatencies(),
      queued: createLatencies(),
      wire: createLatencies(),
      installed: createLatencies(),
    },
    gate,
    ...(lanes === undefined ? {} : { lanes }),
    blocks: blocks.map(({ name, pageBytes, pageCount }) => {
      const count = Math.ceil(pageCount / 32);
      const [present, claimed, requested] = [words(count), words(count), words(count)];
      present.fill(-1);
      claimed.fill(-1);
      return { name, pageBytes, pageCount, present, claimed, requested };
    }),
  };
}

/** Whether the page may be read and written. A vCPU looks before every access. */
export function isPresent(door: FaultDoor, block: number, page: number): boolean {
  const { present } = door.blocks[block] as FaultBlock;
  return (Atomics.load(present, page >>> 5) & (1 << (page & 31))) !== 0;
}

/** Whether what is missing comes, for whoever waits for a page and whoever watches those. */
export function linkOf({ words }: FaultDoor): FaultLink {
  return LINKS[Atomics.load(words, LINK)] ?? "given-up";
}

/** Whether nothing is missing any more, once the guest runs: nobody need look for a page from then on. */
export function isWhole({ words }: FaultDoor): boolean {
  return Atomics.load(words, MISSING) === 0;
}

/** For the engine. */
export function setLink({ words }: FaultDoor, link: FaultLink): void {
  Atomics.store(words, LINK, LINKS.indexOf(link));
}

/**
 * Serves the lane of a seat in the calling thread, for a while and until the page that it has asked for is
 * there. False when it cannot.
 */
export type Fetch = (what: Wanted) => boolean;

/** A page that a vCPU waits for, and the seat of its thread. */
export interface Wanted {
  readonly seat: number;
  readonly block: number;
  readonly page: number;
}

/**
 * Asks for a page, and waits for it, also while the link is paused. False when it did not come within
 * `limitMs`: the caller may do something else and ask again, which costs nothing. A seat is used by one
 * thread. Throws POSTCOPY_INTERRUPTED when the page never will come: the link was given up.
 */
export function awaitPage(door: FaultDoor, what: Wanted, limitMs: number, fetch?: Fetch): boolean {
  const { seat, block, page } = what;
  if (isPresent(door, block, page)) return true;
  if (!(seat >= 0 && seat < SEATS_MAX)) throw new RangeError(`Cannot ask from seat ${seat}`);
  const { words, seats, sinceMs, blockedMs } = door;
  const { present } = door.blocks[block] as FaultBlock;
  const index = page >>> 5;
  const bit = 1 << (page & 31);
  if (Atomics.load(words, SEATED) <= seat) seatUpTo(words, seat);
  const startMs = nowMs();
  const at = seat * SEAT_WORDS;
  const number = ((Atomics.load(seats, at) & ~SEAT_STATE) + SEAT_NEXT) | 0;
  // Here, where a processor is at hand: the lane may have to wait for one that bulk threads have.
  const isClosed = Atomics.exchange(seats, at + SEAT_GATE, number | SEAT_ASKED) !== 0;
  if (!isClosed) closeGate(door); // Else by a thread that was ended while it waited here.
  Atomics.store(seats, at, number | SEAT_WRITING);
  // A wait that was given up may have ended unseen: only the same page has been missing since.
  const isSame =
    Atomics.load(seats, at + 1) === block && Atomics.load(seats, at + 2) >>> 0 === page;
  if (!isSame || sinceMs[seat] === 0) sinceMs[seat] = startMs;
  Atomics.store(seats, at + 1, block);
  Atomics.store(seats, at + 2, page);
  Atomics.store(seats, at, number | SEAT_ASKED);
  Atomics.add(words, BELL, 1);
  const isFetched = fetch?.(what) ?? false;
  if (!isFetched) Atomics.notify(words, BELL);
  let isThere = false;
  let isGivenUp = false;
  for (;;) {
    isGivenUp = linkOf(door) === "given-up";
    const value = Atomics.load(present, index);
    isThere = (value & bit) !== 0;
    const leftMs = startMs + limitMs - nowMs();
    if (isThere || isGivenUp || leftMs <= 0) break;
    Atomics.wait(present, index, value, Math.min(leftMs, LOOK_MS));
  }
  if (Atomics.exchange(seats, at + SEAT_GATE, 0) !== 0) openGate(door);
  const endMs = nowMs();
  blockedMs[seat] = (blockedMs[seat] as number) + endMs - startMs;
  if (isThere) {
    Atomics.compareExchange(seats, at, number | SEAT_ASKED, number | SEAT_IDLE);
    noteLatency(door.latencies.total, endMs - (sinceMs[seat] as number));
    sinceMs[seat] = 0;
  } else if (isGivenUp) throw neverComes(door.blocks[block] as FaultBlock, page);
  return isThere;
}

/** Before the first question from there: who looks for questions need not look further. */
function seatUpTo(words: Int32Array, seat: number): void {
  for (;;) {
    const seated = Atomics.load(words, SEATED);
    if (seated > seat) return;
    if (Atomics.compareExchange(words, SEATED, seated, seat + 1) === seated) return;
  }
}

function neverComes({ name }: FaultBlock, page: number): MigrationError {
  const reason = `page ${page} of "${name}" will not come: the migration was given up`;
  return new MigrationError("POSTCOPY_INTERRUPTED", { reason }, { at: "destination" });
}

/**
 * Takes the next question of the seats from `from` on that are this lane's. Null when there is
 * none. A page that was asked for before is not returned again: who waits is woken all the same.
 */
export function takeQuestion(
  door: FaultDoor,
  { from, lane, lanes }: { from: number; lane: number; lanes: number },
): { seat: number; block: number; page: number; sinceMs: number } | null {
  const { seats } = door;
  const seated = Atomics.load(door.words, SEATED);
  for (let step = 0; step < seated; step += 1) {
    const seat = (from + step) % seated;
    const at = seat * SEAT_WORDS;
    if (seat % lanes !== lane) continue;
    const asked = Atomics.load(seats, at);
    if ((asked & SEAT_STATE) === SEAT_IDLE) openGateOf(door, at, asked);
    if ((asked & SEAT_STATE) !== SEAT_ASKED) continue;
    const block = Atomics.load(seats, at + 1);
    const page = Atomics.load(seats, at + 2) >>> 0;
    const sinceMs = door.sinceMs[seat] as number;
    const idle = (asked & ~SEAT_STATE) | SEAT_IDLE;
    // Else the next question is being written, and whoever does rings the bell once it is there.
    if (Atomics.compareExchange(seats, at, asked, idle) !== asked) continue;
    const { requested, present } = door.blocks[block] as FaultBlock;
    const index = page >>> 5;
    const bit = 1 << (page & 31);
    if ((Atomics.load(present, index) & bit) !== 0) continue;
    if ((Atomics.or(requested, index, bit) & bit) === 0) {
      return { seat, block, page, sinceMs };
    }
  }
  return null;
}

/** Its page is there, and the gate still closed: who waited may have been ended meanwhile. */
function openGateOf(door: FaultDoor, at: number, idle: number): void {
  const { seats } = door;
  const mark = (idle & ~SEAT_STATE) | SEAT_ASKED;
  if (Atomics.load(seats, at + SEAT_GATE) !== mark) return;
  const block = Atomics.load(seats, at + 1);
  const page = Atomics.load(seats, at + 2) >>> 0;
  if (Atomics.load(seats, at) !== idle) return; // Block and page may be of two questions.
  const isThere = isPresent(door, block, page);
  if (isThere && Atomics.compareExchange(seats, at + SEAT_GATE, mark, 0) === mark) openGate(door);
}

/** Pages that are missing at the destination: called before anything arrives, per word of bits. */
export function discardPages(door: FaultDoor, block: number, index: number, bits: number): void {
  const { present, claimed } = door.blocks[block] as FaultBlock;
  const gone = Atomics.and(present, index, ~bits) & bits;
  Atomics.and(claimed, index, ~bits);
  Atomics.add(door.words, MISSING, popcount(gone));
}

/**
 * Claims the pages that `bits` names; returns those that are the caller's to place, at once: others
 * drop what they have of them, and nobody asks whether they came.
 */
export function claimPages(door: FaultDoor, block: number, index: number, bits: number): number {
  const { claimed } = door.blocks[block] as FaultBlock;
  return bits & ~Atomics.or(claimed, index, bits);
}

/** Whether the page is somebody's: what else comes of it is dropped. */
export function isClaimed(door: FaultDoor, block: number, page: number): boolean {
  const { claimed } = door.blocks[block] as FaultBlock;
  return (Atomics.load(claimed, page >>> 5) & (1 << (page & 31))) !== 0;
}

/** The claimed pages are placed: whoever waits for one goes on. */
export function markPresent(door: FaultDoor, block: number, index: number, bits: number): void {
  const { present } = door.blocks[block] as FaultBlock;
  const fresh = bits & ~Atomics.or(present, index, bits);
  Atomics.notify(present, index);
  const count = popcount(fresh);
  if (count > 0 && Atomics.sub(door.words, MISSING, count) === count) {
    Atomics.notify(door.words, MISSING);
    Atomics.notify(door.words, BELL);
  }
}

/**
 * What came is here, and everything else is missing: whoever claimed a page is gone, and will not
 * place it any more. Returns how many are missing. No thread that places pages may be left.
 */
export function reconcile({ words, blocks }: FaultDoor): number {
  let missing = 0;
  for (const { present, claimed, requested } of blocks) {
    for (let index = 0; index < present.length; index += 1) {
      const there = Atomics.load(present, index);
      Atomics.store(claimed, index, there);
      Atomics.store(requested, index, 0);
      missing += 32 - popcount(there);
    }
  }
  Atomics.store(words, MISSING, missing);
  return missing;
}

/** Who waits for a page asks for it once more: the lane that was to bring it is gone. */
export function askAgain(door: FaultDoor): void {
  const { seats, sinceMs } = door;
  for (let seat = 0; seat < SEATS_MAX; seat += 1) {
    const at = seat * SEAT_WORDS;
    const state = Atomics.load(seats, at);
    if (sinceMs[seat] === 0 || (state & SEAT_STATE) !== SEAT_IDLE) continue;
    Atomics.compareExchange(seats, at, state, state | SEAT_ASKED);
  }
  ringBell(door);
}

/** A lane's own thread is to look. */
export function ringBell({ words }: Pick<FaultDoor, "words">): void {
  Atomics.add(words, BELL, 1);
  Atomics.notify(words, BELL);
}

/** The first page from `from` on that is missing; -1 when all are there. For tests. */
export function nextMissing({ present, pageCount }: FaultBlock, from: number): number {
  for (let page = from; page < pageCount; page = (page | 31) + 1) {
    const missing = ~Atomics.load(present, page >>> 5) & (-1 << (page & 31));
    if (missing !== 0) {
      const found = (page & ~31) + lowestBit(missing);
      return found < pageCount ? found : -1;
    }
  }
  return -1;
}

/** How long pages were waited for so far. What the source took is known to the source. */
export function faultTimes({ latencies, blockedMs }: FaultDoor): FaultsMessage {
  const bySeat = Array.from(blockedMs);
  while (bySeat.at(-1) === 0) bySeat.pop();
  const { total, queued, wire, installed } = latencies;
  return {
    stages: {
      total: latencyFigures(total),
      queued: latencyFigures(queued),
      wire: latencyFigures(wire),
      served: latencyFigures(createLatencies()),
      installed: latencyFigures(installed),
    },
    vcpus: bySeat.map((each) => ({ blockedMs: each })),
  };
}
