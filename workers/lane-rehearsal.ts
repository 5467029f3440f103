import { must } from "../base/assert.ts";
import { Deadline, nowMs } from "../base/clock.ts";
import { KIB } from "../base/units.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { type OwnPair, openOwnPair } from "../channels/own-pair.ts";
import { receiveBlockOf } from "./blocks.ts";
import { createControl } from "./control.ts";
import { wordCountFor } from "./dirty-words.ts";
import {
  ARMED,
  awaitPage,
  createFaultDoor,
  discardPages,
  type FaultDoor,
  isPresent,
  MISSING,
} from "./fault-door.ts";
import type { Rest } from "./lane-idle.ts";
import { LaneReceiver } from "./lane-receiver.ts";
import { LaneSender } from "./lane-sender.ts";
import {
  createLaneState,
  FETCHES,
  type LaneState,
  leaveLane,
  MAY_ASK,
  openLane,
  takeLane,
} from "./lane-state.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "./lane-words.ts";
import { createLatencies } from "./latencies.ts";
import { OwnFaults } from "./own-faults.ts";
import {
  FAR_BYTES,
  markDirty,
  type PretendRegion,
  pretendSendBlock,
  type SharedPlace,
  sharedMemory,
} from "./pretend-blocks.ts";
import type { ChannelPlace, ReceiveSetup, SendSetup } from "./protocol.ts";
import type { RamPlace } from "./ram.ts";
import { threadNumber } from "./thread-number.ts";

/** Nothing takes so long where one thread plays both ends. */
const LIMIT_MS = 2000;

/**
 * What V8 has compiled goes for what it has seen: one sender, one receiver and one way to a page, and it
 * would begin anew with the first page of a real guest, whose objects are others. So each act has objects
 * of its own, and goes other ways than the one before: frames with sums and without, answers that come
 * after so many looks in vain, and in the first night some that come too late for looks.
 */
const ACTS: readonly {
  readonly hasChecksum: boolean;
  readonly vainLooks: number;
  readonly hasLate: boolean;
}[] = [
  { hasChecksum: true, vainLooks: 0, hasLate: true },
  { hasChecksum: false, vainLooks: 1, hasLate: false },
  { hasChecksum: true, vainLooks: 4, hasLate: true },
  { hasChecksum: false, vainLooks: 16, hasLate: false },
];
type Act = (typeof ACTS)[number];

/** As many blocks over the same memory: each page is asked for once, and few bytes are enough for many. */
const BLOCKS = 8;
const PAGES = 32;
const PAGE_BYTES = 4 * KIB;
const BYTES = PAGES * PAGE_BYTES;

const FAR_PAGES = FAR_BYTES / PAGE_BYTES;

/**
 * All acts are played so often. V8 makes good code of what was called 400 times, and its best after 3000 more,
 * in milliseconds for each of the largest functions (`--invocation-count-for-maglev`, `-for-turbofan`). It
 * counts by the code that a call has run, which is less than half of most here, and anew after something
 * new. With a third as many a guest meets V8 at work on just those.
 */
const NIGHTS = 20;

/** Blocks that are asked for by turns: as many walks through memory as a lane tells apart. */
const AT_ONCE = 4;

/** Of so many one is of zeros. */
const ZERO_EVERY = 8;

/** By page: those that a bulk channel has taken, and holds back; the lane repeats them. */
const TAKEN = 0x0404_0404;

/** Longer than anybody looks. */
const LATE_MS = 6;

/** A vCPU that has left its lane sleeps, and then asks again. */
const ANSWER_MS = 8;

/** Not the first one: who has answered looks for a while. */
const LATE_TURNS: ReadonlySet<number> = new Set([1, 2]);

const CHANNEL = 1;

/** Whose part a thread learns: one that serves a lane, at either end, or a vCPU that fetches by itself. */
export type Part = "lane" | "vcpu";

/** What one turn of a play asks for: a page each, and each only once. */
interface Question {
  readonly block: number;
  readonly page: number;
}

/**
 * What this thread played with last, less than half a MiB of it resident: kept, for V8 throws compiled code
 * out, and forgets what it has seen, with the last object of a kind that is collected.
 */
const PROPS: Play[] = [];

/**
 * Plays through what it takes to bring a page that a guest waits for, with both ends in the calling thread
 * and over connections of its own, until V8 has compiled that. Else it does so while the first pages of a
 * real guest are waited for, on the processors that would bring them. Ends early once `isOver`. Returns how
 * many pages came. Throws where it cannot be done, and the thread may be used all the same.
 */
export async function rehearse(part: Part, isOver: () => boolean): Promise<number> {
  const checksum = await loadChecksum();
  const memory = memoryOfBoth();
  let pages = 0;
  for (let night = 0; night < NIGHTS; night += 1) {
    for (const act of ACTS) {
      if (isOver()) return pages;
      const hasLate = act.hasLate && night === 0; // It takes long, and is as rare with a guest.
      pages += await perform({ ...act, hasLate }, part, { checksum, memory, isOver });
    }
  }
  return pages;
}

async function perform(
  act: Act,
  part: Part,
  { checksum, memory, isOver }: { checksum: Checksum; memory: Memory; isOver: () => boolean },
): Promise<number> {
  const pair = await openOwnPair(LIMIT_MS);
  try {
    const scene = sceneOf(pair, act, memory);
    const play = await (part === "lane" ? laneOf : vcpuOf)(scene, checksum);
    PROPS.splice(0, 1, play);
    try {
      for (const [number, questions] of [...turns(memory)].entries()) {
        if (isOver()) break;
        play.turn(questions, act.hasLate && LATE_TURNS.has(number));
        // Whoever has this thread may want it.
        await new Promise((resolve) => setImmediate(resolve));
      }
    } finally {
      play.close();
    }
    return BLOCKS * PAGES - Atomics.load(scene.door.words, MISSING);
  } finally {
    await pair.close();
  }
}

/** A page of each of several blocks: in the first of them one after the other, else in no order. */
function* turns(memory: Memory): Generator<Question[]> {
  for (let first = 0; first < BLOCKS; first += AT_ONCE) {
    for (let number = 0; number < PAGES; number += 1) {
      // Triangular numbers leave each remainder by a power of two once.
      const stray = ((number * (number + 1)) / 2) % PAGES;
      yield Array.from({ length: AT_ONCE }, (_, index) => {
        const block = first + index;
        const page = index === 0 ? number : stray;
        return { block, page: firstPageOf(block, memory) + page };
      });
    }
  }
}

/** A guest that has gone over without its memory, and both ends of its only lane. */
interface Scene {
  readonly act: Act;
  readonly send: SendSetup;
  readonly receive: ReceiveSetup;
  readonly door: FaultDoor;
  readonly state: LaneState;
  readonly source: ChannelPlace;
  readonly destination: ChannelPlace;
}

interface Play {
  /** `isLate`: one of the answers comes late. */
  readonly turn: (questions: readonly Question[], isLate: boolean) => void;
  readonly close: () => void;
}

/** The lane's threads: requests, then answers. */
function laneOf(scene: Scene, checksum: Checksum): Play {
  const { act, receive, door, state } = scene;
  const toSender = told(OPEN);
  const sender = senderOf(scene, checksum, toSender);
  const receiver = new LaneReceiver(receive, scene.destination, {
    checksum,
    state,
    lane: 0,
    lanes: 1,
  });
  const words = told(OPEN);
  const thread = threadNumber() || 1;
  return {
    turn(questions, isLate) {
      for (let look = 0; look < act.vainLooks; look += 1) sender.look();
      if (isLate) sleepOnce(sender, () => sender.look());
      for (const [seat, question] of questions.entries()) awaitPage(door, { seat, ...question }, 0);
      for (const _ of questions) receiver.look(words);
      for (let look = 0; look < act.vainLooks; look += 1) receiver.look(words);
      if (isLate) sleepOnce(receiver, () => receiver.look(words));
      if (takeLane(state, thread)) {
        receiver.look(words); // As where a vCPU serves.
        state.words[FETCHES] = (state.words[FETCHES] as number) + 1;
        leaveLane(state);
      }
      Atomics.store(toSender, FINISH, 1);
      insist(() => {
        sender.serve();
        receiver.serve(words);
        return questions.every(({ block, page }) => isPresent(door, block, page));
      });
      Atomics.store(toSender, FINISH, 0);
    },
    close() {
      sender.close();
      receiver.close();
    },
  };
}

/** A vCPU, and whoever answers it meanwhile. */
async function vcpuOf(scene: Scene, checksum: Checksum): Promise<Play> {
  const { act, door } = scene;
  const sender = senderOf(scene, checksum, told(OPEN));
  let looks = 0;
  let silentUntilMs = 0;
  const own = await OwnFaults.open(door, () => {
    looks += 1;
    if (looks % (1 + act.vainLooks) === 0 && nowMs() >= silentUntilMs) sender.look();
  });
  return {
    turn(questions, isLate) {
      if (isLate) silentUntilMs = nowMs() + LATE_MS;
      // A thread that is slow yet leaves the lane to one that there is none of here.
      for (const { block, page } of questions) {
        insist(() => own.awaitPage({ seat: 0, block, page }, ANSWER_MS));
      }
    },
    close() {
      sender.close();
      // Closed, `own` would let go of what is to be kept. It has no files here, only memory.
    },
  };
}

/** Has it look in vain until it sleeps. */
function sleepOnce(
  lane: { readonly rest: (rest: Rest) => void },
  look: () => Rest | "end" | null,
): void {
  insist(() => {
    const rest = look();
    if (rest === null || rest === "end") return false;
    lane.rest(rest);
    return true;
  });
}

function senderOf({ act, send, source }: Scene, checksum: Checksum, words: Int32Array): LaneSender {
  const sums = act.hasChecksum ? checksum : null;
  return new LaneSender(send, source, { words, checksum: sums, served: createLatencies() });
}

/** What was written may take a moment to arrive where the kernel is busy. */
function insist(hasCome: () => boolean): void {
  const deadline = new Deadline(LIMIT_MS);
  while (!hasCome()) {
    if (deadline.passed) throw new Error("no page came");
  }
}

/** What guests have, in which all blocks lie one over the other. */
interface Memory {
  readonly from: SharedPlace;
  readonly to: SharedPlace;
  /** Of the last block, before those that are asked for; nobody touches them. */
  readonly farPages: number;
}

function memoryOfBoth(): Memory {
  try {
    return filled(FAR_PAGES);
  } catch (error) {
    // Where nobody may have so much, though it takes no memory, all pages are near.
    if (!(error instanceof RangeError)) throw error;
    return filled(0);
  }
}

function filled(farPages: number): Memory {
  const farBytes = farPages * PAGE_BYTES;
  const [from, to] = [sharedMemory(farBytes + BYTES), sharedMemory(farBytes + BYTES)];
  for (const at of new Set([0, farBytes])) {
    const bytes = new Uint8Array(from.buffer, at, BYTES).fill(1);
    for (let page = 0; page < PAGES; page += ZERO_EVERY) {
      bytes.fill(0, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    }
  }
  return { from, to, farPages };
}

/** The first one of a block that is asked for. */
function firstPageOf(block: number, { farPages }: Memory): number {
  return block === BLOCKS - 1 ? farPages : 0;
}

function sceneOf({ nearFd, farFd }: OwnPair, act: Act, memory: Memory): Scene {
  const { from, to } = memory;
  const terms = { hasChecksum: act.hasChecksum, channelTimeoutMs: LIMIT_MS };
  const regionsOf = (place: RamPlace): PretendRegion[] => {
    return Array.from({ length: BLOCKS }, (_, block) => {
      const pageCount = firstPageOf(block, memory) + PAGES;
      const size = { sizeBytes: pageCount * PAGE_BYTES, pageBytes: PAGE_BYTES, pageCount };
      return { name: `block ${block}`, place, ...size, pagesPerChunk: PAGES };
    });
  };
  const regions = regionsOf(to);
  const receive = { blocks: regions.map((region) => receiveBlockOf(region, false)), ...terms };
  const control = createControl(1);
  const others = createControl(1, control.gate);
  const lanes = { states: [createLaneState()], receive: { ...receive, control: others } };
  const door = createFaultDoor(regions, control.gate, lanes);
  const send = {
    control: createControl(1),
    blocks: regionsOf(from).map(pretendSendBlock),
    channels: 1,
    cacheBytes: 0,
    xbzrle: false,
    ...terms,
    fenceTimeoutMs: LIMIT_MS,
  };
  // As they cross a thread boundary: V8 tells objects apart by how they were made.
  const given = structuredClone({ send, receive: { control, ...receive, door } });
  const place = { channel: CHANNEL, readSequence: 0, writeSequence: 0 };
  const scene = {
    act,
    ...given,
    door: given.receive.door,
    state: must(given.receive.door.lanes?.states[0], "there is a lane"),
    source: { ...place, readFd: farFd, writeFd: farFd },
    destination: { ...place, readFd: nearFd, writeFd: nearFd },
  };
  goOver(scene, memory);
  return scene;
}

/** The guest runs at the destination, and misses all of its memory. */
function goOver({ send, door, state, destination }: Scene, memory: Memory): void {
  for (const [index, { dirty }] of send.blocks.entries()) {
    const first = wordCountFor(firstPageOf(index, memory));
    markDirty(dirty, ~TAKEN, { first });
    for (let word = first; word < dirty.words.length; word += 1) {
      discardPages(door, index, word, -1);
    }
  }
  Atomics.store(door.words, ARMED, 1);
  openLane(state, destination);
  state.words[MAY_ASK] = 1;
}

function told(...indices: number[]): Int32Array {
  const all = createLaneWords();
  for (const index of indices) tellLanes(all, index);
  return all;
}
