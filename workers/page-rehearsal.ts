import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import {
  type DescriptorOptions,
  readNow,
  readSome,
  Stopped,
  writeAll,
} from "../channels/descriptor.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  encodeHeader,
  HEADER_BYTES,
  writeChecksum,
} from "../channels/frame.ts";
import { encodeFence } from "../channels/messages.ts";
import { type OwnPair, openOwnPair } from "../channels/own-pair.ts";
import { receiveBlockOf } from "./blocks.ts";
import { CounterRow, createControl, stopOf } from "./control.ts";
import { wordCountFor } from "./dirty-words.ts";
import { ARMED, createFaultDoor, discardPages } from "./fault-door.ts";
import { PageReceiver } from "./page-receiver.ts";
import { booked, PageSender } from "./page-sender.ts";
import {
  FAR_BYTES,
  markDirty,
  type PretendRegion,
  pretendSendBlock,
  sharedMemory,
} from "./pretend-blocks.ts";
import type { ChannelPlace, ReceiveSetup, SendSetup } from "./protocol.ts";
import type { RamPlace } from "./ram.ts";

/** Nothing takes so long where one thread plays both ends. */
const LIMIT_MS = 500;

const CHANNEL = 1;
const PAGE_BYTES = 4 * KIB;
/** 512 KiB, all that is looked at together: what is less is not sent from where it lies. */
const PAGES_PER_CHUNK = 128;
/** Sent together: what the system keeps of a connection. */
const TASKS = [
  [0, 1],
  [2, 3],
  [4, 5],
  [6, 7],
] as const;
const TASK_PAGES = PAGES_PER_CHUNK * TASKS[0].length;
const TASK_BYTES = TASK_PAGES * PAGE_BYTES;
/** A whole group of the words that tell what is dirty. */
const PAGES = TASK_PAGES * TASKS.length;
const BLOCK_BYTES = PAGES * PAGE_BYTES;

const FAR_PAGES = FAR_BYTES / PAGE_BYTES;

/** More than the system keeps of a connection. */
const FULL_BYTES = 64 * MIB;

/** Of so many pages one has content, where chunks are of zeros otherwise. */
const CONTENT_EVERY = 5;

/** By turns: all pages, and such that lie apart. */
const DIRTY = [-1, -1, 0x8ff0_00ff | 0, 0x9555_0001 | 0] as const;

/** As much as it takes until V8 has compiled what a migration of gigabytes has compiled in the end. */
const SENDER_TURNS = 76;
const RECEIVER_TURNS = 30;

interface Act {
  readonly hasChecksum: boolean;
  /**
   * Each page is claimed at the destination, as while the guest runs there. Not so that threads step back, as
   * they do then: who may not rise again would stay behind.
   */
  readonly isGuarded: boolean;
}

const ACTS: readonly Act[] = [
  { hasChecksum: false, isGuarded: false },
  { hasChecksum: true, isGuarded: false },
  { hasChecksum: false, isGuarded: true },
  { hasChecksum: false, isGuarded: false },
];

/** Whose part a thread learns. */
export type End = "source" | "destination";

interface Terms {
  readonly act: Act;
  readonly checksum: Checksum;
  readonly pair: OwnPair;
  readonly isOver: () => boolean;
}

/**
 * Plays what a bulk channel's thread does with a guest, with the other end in the calling thread and over
 * a connection of its own, until V8 has compiled that. Else it does so while the first hundreds of MiB of
 * a real guest are on their way, on the processors that would move them. Ends early once `isOver`. Returns
 * how many pages were moved. Throws where it cannot be done, and the thread may be used all the same.
 */
export async function rehearsePages(end: End, isOver: () => boolean): Promise<number> {
  const checksum = await loadChecksum();
  const play = end === "source" ? playSource : playDestination;
  let pages = 0;
  for (const act of ACTS) {
    if (isOver()) break;
    const pair = await openOwnPair(LIMIT_MS);
    try {
      pages += await play({ act, checksum, pair, isOver });
    } finally {
      await pair.close();
    }
  }
  return pages;
}

/** What it sends is thrown away. */
async function playSource({ act, checksum, pair, isOver }: Terms): Promise<number> {
  const source = new PretendSource(act, checksum, { writeFd: pair.nearFd, readFd: pair.farFd });
  const bin = new Uint8Array(TASK_BYTES * 2);
  let pages = 0;
  try {
    meetFullConnection(pair);
    for (let turn = 0; turn < SENDER_TURNS && !isOver(); turn += 1) {
      for (const block of source.blocks) {
        pages += source.send(block, turn);
        source.takeAll(bin);
      }
      source.fence(turn);
      source.takeAll(bin);
      await othersTurn();
    }
  } finally {
    source.close();
  }
  return pages;
}

/** It receives the same again and again. */
async function playDestination({ act, checksum, pair, isOver }: Terms): Promise<number> {
  const { nearFd, farFd } = pair;
  const sent = sentOnce(act, checksum, pair);
  const setup = structuredClone(receiveSetupOf(act));
  const receiver = new PageReceiver(setup, placeOf(nearFd, nearFd), checksum);
  const counters = new CounterRow(setup.control, 0);
  try {
    for (let turn = 0; turn < RECEIVER_TURNS && !isOver(); turn += 1) {
      forgetAll(setup);
      receiver.readSequence = 0;
      writeAll(optionsOf(farFd), sent);
      booked(counters, () => receiver.receive());
      await othersTurn();
    }
  } finally {
    receiver.close();
  }
  return counters.read("pages");
}

/** Every block and the end, as bytes. */
function sentOnce(act: Act, checksum: Checksum, { nearFd, farFd }: OwnPair): Uint8Array {
  const source = new PretendSource(act, checksum, { writeFd: farFd, readFd: nearFd });
  const sent = new Uint8Array(TASK_BYTES * (source.blocks.length + 1));
  let bytes = 0;
  try {
    for (const block of source.blocks) {
      source.send(block, 0);
      bytes += source.takeAll(sent.subarray(bytes));
    }
    source.fence(0);
    source.end();
    bytes += source.takeAll(sent.subarray(bytes));
  } finally {
    source.close();
  }
  return sent.subarray(0, bytes);
}

/**
 * Writes more than the system takes, and throws it away. V8 knows after it that such a call may fail:
 * code that it makes before is thrown out when one does.
 */
function meetFullConnection({ nearFd, farFd }: OwnPair): void {
  const near = optionsOf(nearFd);
  Atomics.store(near.stop, 0, 1);
  try {
    writeAll(near, new Uint8Array(FULL_BYTES));
  } catch (error) {
    if (!(error instanceof Stopped)) throw error;
  }
  const [far, bin] = [optionsOf(farFd), new Uint8Array(MIB)];
  while (readNow(far, bin) > 0);
}

/** A source's end of a channel, and the other end, which takes what it sends and answers. */
class PretendSource {
  /** Their numbers. */
  readonly blocks: readonly number[];
  readonly #setup: SendSetup;
  readonly #sender: PageSender;
  readonly #counters: CounterRow;
  readonly #other: DescriptorOptions;
  readonly #checksum: Checksum;
  #takenBytes = 0;

  constructor(
    act: Act,
    checksum: Checksum,
    { writeFd, readFd }: { writeFd: number; readFd: number },
  ) {
    // As it crosses a thread boundary: V8 tells objects apart by how they were made.
    this.#setup = structuredClone(sendSetupOf(act));
    this.blocks = [...this.#setup.blocks.keys()];
    this.#counters = new CounterRow(this.#setup.control, 0);
    this.#other = optionsOf(readFd);
    this.#checksum = checksum;
    const sums = act.hasChecksum ? checksum : null;
    this.#sender = new PageSender(this.#setup, placeOf(writeFd, writeFd), sums);
  }

  /** Sends what is dirty of a block this turn. Returns how many pages. */
  send(block: number, turn: number): number {
    const bits = must(DIRTY[turn % DIRTY.length], "each turn has pages");
    const part = must(TASKS[Math.floor(turn / DIRTY.length) % TASKS.length], "parts come by turns");
    const chunks = part.map((chunk) => firstPageOf(block) / PAGES_PER_CHUNK + chunk);
    const { dirty } = must(this.#setup.blocks[block], "it is one of the blocks");
    const words = wordCountFor(TASK_PAGES);
    const first = wordCountFor((chunks[0] as number) * PAGES_PER_CHUNK);
    markDirty(dirty, bits, { first, words });
    const task = structuredClone({ chunks, round: 1, part: "all" } as const);
    return booked(this.#counters, () => {
      return this.#sender.send(block, task.chunks, task.round, task.part);
    });
  }

  /** Asks whether all is applied, and has the answer at once: it was given before. */
  fence(number: number): void {
    const body = encodeFence(number);
    const frame = new Uint8Array(HEADER_BYTES + body.length);
    const view = new DataView(frame.buffer);
    const header = { name: "fenced", sequence: number, length: body.length } as const;
    encodeHeader(view, 0, { ...header, hasChecksum: true });
    const covered = frame.subarray(0, CHECKSUMMED_HEADER_BYTES);
    writeChecksum(view, 0, this.#checksum.ofPair(covered, body));
    frame.set(body, HEADER_BYTES);
    writeAll(this.#other, frame);
    booked(this.#counters, () => this.#sender.fence(number));
  }

  end(): void {
    this.#sender.end();
  }

  /** Takes what was sent and not taken yet. Returns how much it was. */
  takeAll(target: Uint8Array): number {
    const least = this.#counters.read("movedBytes") - this.#takenBytes;
    const { bytes } = readSome(this.#other, target.subarray(0, least), { least, isIdle: false });
    this.#takenBytes += bytes;
    return bytes;
  }

  close(): void {
    this.#sender.close();
  }
}

/** Others may want this thread. */
async function othersTurn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

/** As if nothing had been received. */
function forgetAll({ blocks, door }: ReceiveSetup): void {
  for (const [index, { received }] of blocks.entries()) {
    received.fill(0);
    if (door === undefined) continue;
    const first = wordCountFor(firstPageOf(index));
    for (let word = first; word < received.length; word += 1) discardPages(door, index, word, -1);
  }
}

function sendSetupOf({ hasChecksum }: Act): SendSetup {
  return {
    control: createControl(1),
    blocks: regionsOf("source").map(pretendSendBlock),
    channels: 1,
    cacheBytes: 0,
    xbzrle: false,
    hasChecksum,
    channelTimeoutMs: LIMIT_MS,
    fenceTimeoutMs: LIMIT_MS,
  };
}

function receiveSetupOf({ hasChecksum, isGuarded }: Act): ReceiveSetup {
  const control = createControl(1);
  const blocks = regionsOf("destination").map((block) => receiveBlockOf(block, true));
  const common = { control, blocks, hasChecksum, channelTimeoutMs: LIMIT_MS };
  if (!isGuarded) return common;
  const door = createFaultDoor(blocks, control.gate);
  Atomics.store(door.words, ARMED, 1);
  return { ...common, door };
}

/** Of zeros, of content and of both, in shared memory and in files that there are everywhere. */
function regionsOf(end: End): PretendRegion[] {
  const [zeros, both] = [sharedMemory(BLOCK_BYTES), sharedMemory(BLOCK_BYTES)];
  if (end === "source") fillPart(new Uint8Array(both.buffer));
  const sink = fileAt("/dev/null", 0);
  const files =
    end === "source"
      ? [fileAt("/dev/zero", 0), fileAt(process.execPath, -FAR_BYTES)]
      : [sink, sink];
  return [zeros, ...files, both].map((place, index) => ({
    name: `block ${index}`,
    sizeBytes: firstPageOf(index) * PAGE_BYTES + BLOCK_BYTES,
    place,
    pageBytes: PAGE_BYTES,
    pageCount: firstPageOf(index) + PAGES,
    pagesPerChunk: PAGES_PER_CHUNK,
  }));
}

function fileAt(path: string, offset: number): RamPlace {
  return { kind: "file", path, offset };
}

/** The first one that is played with: those of blocks in files lie far behind. */
function firstPageOf(block: number): number {
  return block === 1 || block === 2 ? FAR_PAGES : 0;
}

/** Every other chunk, and a few pages of the others. */
function fillPart(bytes: Uint8Array): void {
  for (let page = 0; page < PAGES; page += 1) {
    const isContent = (page / PAGES_PER_CHUNK) & 1 || page % CONTENT_EVERY === 0;
    if (isContent) bytes.fill(1, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }
}

function placeOf(readFd: number, writeFd: number): ChannelPlace {
  return { channel: CHANNEL, readFd, writeFd, readSequence: 0, writeSequence: 0, isDeep: true };
}

function optionsOf(fd: number): DescriptorOptions {
  const stop = stopOf(createControl(1), CHANNEL);
  return { fd, channel: CHANNEL, stop, limitMs: LIMIT_MS, isDeep: true };
}
