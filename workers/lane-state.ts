import type { MigrationError } from "../base/errors.ts";
import { FRAMES } from "../channels/frame.ts";
import { decodeFailure, encodeFailure } from "../channels/messages.ts";
import type { ChannelPlace } from "./protocol.ts";
import { isThreadGone } from "./thread-number.ts";

/**
 * The destination's end of a priority lane, as the threads share it that serve it by turns: its own, and
 * those of vCPUs, each of which may fetch by itself what it waits for.
 *
 * Who serves has the descriptor for itself, and all that is below. It leaves at the edge of a frame, with
 * nothing read ahead, so that whoever comes next needs no more than what is written here.
 *
 *   words    SERVER          the thread that serves, FREE, or CLOSED: nobody may
 *            LEG             how many connections it has had
 *            CHANNEL, READ_FD, WRITE_FD, IS_DEEP       of this one
 *            READ_SEQUENCE, WRITE_SEQUENCE             of the next frame
 *            REQUESTS        made on this connection
 *            SEAT            which comes first when questions are taken: they take turns
 *            MAY_ASK         1 once the source is ready for requests
 *            OUTCOME         what came of it: see below
 *            FETCHES         how often a vCPU has served
 *            WAITED          rows that are used of the next two
 *   waited   by row, block and page: asked for, and not there yet
 *   askedMs  by row
 *   failure  as it is on the wire, once the outcome is FAILED
 */
export interface LaneState {
  readonly words: Int32Array;
  readonly waited: Int32Array;
  readonly askedMs: Float64Array;
  readonly failure: Uint8Array;
}

const SERVER = 0;
const LEG = 1;
const CHANNEL = 2;
const READ_FD = 3;
const WRITE_FD = 4;
const IS_DEEP = 5;
export const READ_SEQUENCE = 6;
export const WRITE_SEQUENCE = 7;
export const REQUESTS = 8;
export const SEAT = 9;
export const MAY_ASK = 10;
const OUTCOME = 11;
const WAITED = 12;
const FAILURE_BYTES = 13;
export const FETCHES = 14;
const WORDS = 16;

const FREE = 0;
const CLOSED = -1;

const GOES_ON = 0;
/** The source has said that nothing follows. */
const ENDED = 1;
const FAILED = 2;

/** Questions at once are as many as seats, but a vCPU may have given up waiting, and ask for more. */
const WAITED_MAX = 1024;

export function createLaneState(): LaneState {
  const words = new Int32Array(new SharedArrayBuffer(WORDS * 4));
  words[SERVER] = CLOSED;
  return {
    words,
    waited: new Int32Array(new SharedArrayBuffer(WAITED_MAX * 8)),
    askedMs: new Float64Array(new SharedArrayBuffer(WAITED_MAX * 8)),
    failure: new Uint8Array(new SharedArrayBuffer(FRAMES.failure.bodyBytesMax)),
  };
}

/** The lane has a connection, and may be served. It must be closed. */
export function openLane({ words }: LaneState, place: ChannelPlace): void {
  words[CHANNEL] = place.channel;
  words[READ_FD] = place.readFd;
  words[WRITE_FD] = place.writeFd;
  words[IS_DEEP] = place.isDeep === true ? 1 : 0;
  words[READ_SEQUENCE] = place.readSequence;
  words[WRITE_SEQUENCE] = place.writeSequence;
  for (const word of [REQUESTS, MAY_ASK, OUTCOME, WAITED]) words[word] = 0;
  Atomics.add(words, LEG, 1); // Last: whoever reads it has the rest of this connection, or of one to come.
  Atomics.store(words, SERVER, FREE);
}

/**
 * Nobody serves the lane any more, from now on. False while a thread does, whose stop word must be set:
 * its descriptor must stay open, and what it places is of this connection. A thread that was ended while
 * it served does so no more.
 */
export function closeLane({ words }: LaneState): boolean {
  const server = Atomics.compareExchange(words, SERVER, FREE, CLOSED);
  if (server === FREE || server === CLOSED) return true;
  if (!isThreadGone(server)) return false;
  return Atomics.compareExchange(words, SERVER, server, CLOSED) === server;
}

/** Whether the calling thread serves the lane from now on, until it leaves. */
export function takeLane({ words }: LaneState, thread: number): boolean {
  return Atomics.compareExchange(words, SERVER, FREE, thread) === FREE;
}

export function leaveLane({ words }: LaneState): void {
  Atomics.store(words, SERVER, FREE);
}

/** Who serves, where somebody does and is no more: nobody else can. */
export function isServerGone({ words }: LaneState): boolean {
  const server = Atomics.load(words, SERVER);
  return server !== FREE && server !== CLOSED && isThreadGone(server);
}

/** Tells connections of the lane apart; 0 before the first. */
export function legOf({ words }: LaneState): number {
  return Atomics.load(words, LEG);
}

export function placeOf({ words }: LaneState): ChannelPlace {
  const at = (word: number): number => Atomics.load(words, word);
  return {
    channel: at(CHANNEL),
    readFd: at(READ_FD),
    writeFd: at(WRITE_FD),
    readSequence: at(READ_SEQUENCE) >>> 0,
    writeSequence: at(WRITE_SEQUENCE) >>> 0,
    isDeep: at(IS_DEEP) === 1,
  };
}

/** For who serves: whether there is anything more to serve. Throws what another one failed of. */
export function isOver({ words, failure }: LaneState): boolean {
  const outcome = words[OUTCOME];
  if (outcome === GOES_ON) return false;
  if (outcome === ENDED) return true;
  const channel = words[CHANNEL] as number;
  throw decodeFailure(failure.slice(0, words[FAILURE_BYTES]), channel, "destination");
}

/** For a vCPU that serves: whether its lane goes on. */
export function goesOn({ words }: LaneState): boolean {
  return words[OUTCOME] === GOES_ON;
}

/** For who serves: the source has said that nothing follows. */
export function endLane({ words }: LaneState): void {
  words[OUTCOME] = ENDED;
}

/** For a vCPU that serves: the lane's own thread is to fail of it. */
export function failLane({ words, failure }: LaneState, error: MigrationError): void {
  const told = encodeFailure(error);
  failure.set(told);
  words[FAILURE_BYTES] = told.length;
  words[OUTCOME] = FAILED;
}

/** What the server has asked for and nobody has brought. All of it is for who serves. */
export class Waited {
  readonly #state: LaneState;

  constructor(state: LaneState) {
    this.#state = state;
  }

  get count(): number {
    return this.#state.words[WAITED] as number;
  }

  /** One that has no room any more is not watched: others are. */
  add(block: number, page: number, askedMs: number): void {
    const { words, waited, askedMs: times } = this.#state;
    const row = this.count;
    if (row === WAITED_MAX) return;
    waited[2 * row] = block;
    waited[2 * row + 1] = page;
    times[row] = askedMs;
    words[WAITED] = row + 1;
  }

  /** Strikes out what is there; `struck` is told when it was asked for. */
  strike(
    isThere: (block: number, page: number) => boolean,
    struck: (askedMs: number) => void,
  ): void {
    const { words, waited, askedMs } = this.#state;
    let kept = 0;
    for (let row = 0; row < this.count; row += 1) {
      const block = waited[2 * row] as number;
      const page = waited[2 * row + 1] as number;
      const atMs = askedMs[row] as number;
      if (isThere(block, page >>> 0)) {
        struck(atMs);
        continue;
      }
      waited[2 * kept] = block;
      waited[2 * kept + 1] = page;
      askedMs[kept] = atMs;
      kept += 1;
    }
    words[WAITED] = kept;
  }

  /** When the first of them was asked for; null when there is none. */
  get oldestMs(): number | null {
    return this.count === 0 ? null : (this.#state.askedMs[0] as number);
  }
}
