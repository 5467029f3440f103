import { must } from "../base/assert.ts";
import { Deadline } from "../base/clock.ts";
import { KIB } from "../base/units.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { type OwnPair, openOwnPair } from "../channels/own-pair.ts";
import { createControl } from "./control.ts";
import { createSentRecord, orBits, wordCountFor } from "./dirty-words.ts";
import {
  ARMED,
  awaitPage,
  createFaultDoor,
  discardPages,
  type FaultDoor,
  isPresent,
  MISSING,
} from "./fault-door.ts";
import { Idleness } from "./lane-idle.ts";
import { LaneReceiver } from "./lane-receiver.ts";
import { LaneSender } from "./lane-sender.ts";
import { createLaneState, type LaneState, MAY_ASK, openLane } from "./lane-state.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "./lane-words.ts";
import { createLatencies } from "./latencies.ts";
import { OwnFaults } from "./own-faults.ts";
import type { ChannelPlace, ReceiveBlock, ReceiveSetup, SendBlock, SendSetup } from "./protocol.ts";
import type { RamRegion } from "./ram.ts";

/** Nothing takes so long where one thread plays both ends. */
const LIMIT_MS = 2000;

/** As many blocks over the same memory: each page is asked for once, and few bytes are enough for many. */
const BLOCKS = 32;
const PAGES = 32;
const PAGE_BYTES = 4 * KIB;
const GEOMETRY = { pageBytes: PAGE_BYTES, pageCount: PAGES };

/** Asked for before anything is answered: the answers must fit into a socket's buffer. */
const AT_ONCE = 16;

/** A vCPU that has left its lane asks again. */
const ANSWER_MS = 1;

const CHANNEL = 1;

/** Whose part a thread learns: one that serves a lane, at either end, or a vCPU that fetches by itself. */
export type Part = "lane" | "vcpu";

/** What one turn of a play asks for: a page each, and each only once. */
interface Question {
  readonly block: number;
  readonly page: number;
}

/**
 * Plays through what it takes to bring a page that a guest waits for, with both ends in the calling thread
 * and over a connection of its own, until V8 has compiled that. Else it does so while the first pages of a
 * real guest are waited for, on the processors that would bring them. Ends early once `isOver`. Returns how
 * many pages came. Throws where it cannot be done, and the thread may be used all the same.
 */
export async function rehearse(part: Part, isOver: () => boolean): Promise<number> {
  const checksum = await loadChecksum();
  const pair = await openOwnPair(LIMIT_MS);
  try {
    const scene = sceneOf(pair);
    const play = await (part === "lane" ? laneOf : vcpuOf)(scene, checksum);
    try {
      for (const questions of turns()) {
        if (isOver()) break;
        play.turn(questions);
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

/** A page of each of several blocks: in every fourth of them one after the other, else in no order. */
function* turns(): Generator<Question[]> {
  for (let number = 0; number < PAGES; number += 1) {
    // Triangular numbers leave each remainder by a power of two once.
    const stray = ((number * (number + 1)) / 2) % PAGES;
    for (let first = 0; first < BLOCKS; first += AT_ONCE) {
      yield Array.from({ length: AT_ONCE }, (_, index) => {
        return { block: first + index, page: index % 4 === 0 ? number : stray };
      });
    }
  }
}

/** A guest that has gone over without its memory, and both ends of its only lane. */
interface Scene {
  readonly send: SendSetup;
  readonly receive: ReceiveSetup;
  readonly door: FaultDoor;
  readonly state: LaneState;
  readonly source: ChannelPlace;
  readonly destination: ChannelPlace;
}

interface Play {
  readonly turn: (questions: readonly Question[]) => void;
  readonly close: () => void;
}

/** The lane's threads: requests, then answers. */
function laneOf(scene: Scene, checksum: Checksum): Play {
  const { send, receive, door, state } = scene;
  const sender = new LaneSender(send, scene.source, {
    words: told(OPEN, FINISH),
    checksum,
    served: createLatencies(),
  });
  const receiver = new LaneReceiver(receive, scene.destination, {
    checksum,
    state,
    lane: 0,
    lanes: 1,
  });
  const words = told(OPEN);
  return {
    turn(questions) {
      for (const [seat, question] of questions.entries()) awaitPage(door, { seat, ...question }, 0);
      for (const _ of questions) receiver.look(words);
      insist(() => {
        sender.serve();
        receiver.serve(words);
        return questions.every(({ block, page }) => isPresent(door, block, page));
      });
    },
    close() {
      sender.close();
      receiver.close();
    },
  };
}

/** A vCPU, and whoever answers it meanwhile. */
async function vcpuOf({ send, source, door }: Scene, checksum: Checksum): Promise<Play> {
  const sender = new LaneSender(send, source, {
    words: told(OPEN),
    checksum,
    served: createLatencies(),
  });
  const idleness = new Idleness(new Int32Array(1));
  const own = await OwnFaults.open(door, () => sender.look(idleness));
  return {
    turn(questions) {
      // A thread that is slow yet leaves the lane to one that there is none of here.
      for (const question of questions) {
        insist(() => own.awaitPage({ seat: 0, ...question }, ANSWER_MS));
      }
    },
    close() {
      sender.close();
      own.close();
    },
  };
}

/** What was written may take a moment to arrive where the kernel is busy. */
function insist(hasCome: () => boolean): void {
  const deadline = new Deadline(LIMIT_MS);
  while (!hasCome()) {
    if (deadline.passed) throw new Error("no page came");
  }
}

function sceneOf({ nearFd, farFd }: OwnPair): Scene {
  const from = new SharedArrayBuffer(PAGES * PAGE_BYTES);
  const to = new SharedArrayBuffer(PAGES * PAGE_BYTES);
  new Uint8Array(from).fill(1); // Pages of zeros are another case.
  const names = Array.from({ length: BLOCKS }, (_, index) => `block ${index}`);
  const terms = { hasChecksum: true, channelTimeoutMs: LIMIT_MS };
  const receive = { blocks: names.map((name) => receiveBlockOf(name, to)), ...terms };
  const control = createControl(1);
  const others = createControl(1, control.gate);
  const lanes = { states: [createLaneState()], receive: { ...receive, control: others } };
  const geometries = names.map((name) => ({ name, ...GEOMETRY }));
  const door = createFaultDoor(geometries, control.gate, lanes);
  const send = {
    control: createControl(1),
    blocks: names.map((name) => sendBlockOf(name, from)),
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
    ...given,
    door: given.receive.door,
    state: must(given.receive.door.lanes?.states[0], "there is a lane"),
    source: { ...place, readFd: farFd, writeFd: farFd },
    destination: { ...place, readFd: nearFd, writeFd: nearFd },
  };
  goOver(scene);
  return scene;
}

/** The guest runs at the destination, and misses all of its memory. */
function goOver({ send, door, state, destination }: Scene): void {
  for (const [index, { dirty }] of send.blocks.entries()) {
    for (let word = 0; word < wordCountFor(PAGES); word += 1) {
      orBits(dirty, word, -1);
      discardPages(door, index, word, -1);
    }
  }
  Atomics.store(door.words, ARMED, 1);
  openLane(state, destination);
  state.words[MAY_ASK] = 1;
}

function receiveBlockOf(name: string, buffer: SharedArrayBuffer): ReceiveBlock {
  return {
    ...regionOf(name, buffer),
    ...GEOMETRY,
    isPristine: false,
    received: words(wordCountFor(PAGES)),
    generations: new Uint32Array(words(PAGES).buffer),
  };
}

function sendBlockOf(name: string, buffer: SharedArrayBuffer): SendBlock {
  const chunk = { ...GEOMETRY, pagesPerChunk: PAGES };
  const dirty = { words: words(wordCountFor(PAGES)), summary: words(1) };
  return { ...regionOf(name, buffer), ...chunk, dirty, ...createSentRecord(chunk), firstKey: 0 };
}

function regionOf(name: string, buffer: SharedArrayBuffer): RamRegion {
  return { name, sizeBytes: buffer.byteLength, place: { kind: "shared", buffer } };
}

function words(count: number): Int32Array {
  return new Int32Array(new SharedArrayBuffer(count * 4));
}

function told(...indices: number[]): Int32Array {
  const all = createLaneWords();
  for (const index of indices) tellLanes(all, index);
  return all;
}
