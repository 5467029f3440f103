import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import { type FrameName, HEADER_BYTES } from "../channels/frame.ts";
import { geometryOf } from "../engine/block.ts";
import { Lanes } from "../engine/lanes.ts";
import { stopWorkers } from "../workers/control.ts";
import {
  ARMED,
  awaitPage,
  createFaultDoor,
  discardPages,
  type FaultDoor,
  isPresent,
} from "../workers/fault-door.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "../workers/lane-words.ts";
import { createLatencies } from "../workers/latencies.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import {
  CHUNK_BYTES,
  placeOf,
  receiveBlockOf,
  receiveSetupOf,
  sendBlockOf,
  sendSetupOf,
} from "./fixtures/wire-pipeline.ts";
import { FrameSplitter } from "./harness/frame-splitter.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/** Two lanes with threads at both ends, and what they say to each other in between. */
const seed = seedFromEnvironment();

const LANES = 2;
const PAGE_BYTES = 4 * KIB;
const PAGES = 4096;

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

interface Said {
  readonly lane: number;
  readonly frame: FrameName;
  /** Of a request. */
  readonly page: number;
}

/** A guest that runs without any of its pages, and the lanes that bring them. */
class Faulting {
  readonly door: FaultDoor;
  /** In the order in which it passed, as far as one lane goes. */
  readonly said: Said[] = [];
  readonly #memory = {
    source: sharedMemory(PAGES * PAGE_BYTES),
    target: sharedMemory(PAGES * PAGE_BYTES),
  };
  readonly #words = { source: createLaneWords(), destination: createLaneWords() };
  readonly #lanes: { readonly source: Lanes; readonly destination: Lanes };
  readonly #send;
  readonly #receive;

  private constructor() {
    const { source, target } = this.#memory;
    const bytes = new Uint8Array(PAGES * PAGE_BYTES);
    new Prng(seed).bytes(bytes);
    source.write(bytes);
    const announced = { name: "ram", sizeBytes: bytes.length, pageBytes: PAGE_BYTES };
    this.#send = sendSetupOf([sendBlockOf({ ...announced, source })], false);
    const block = receiveBlockOf({ ...announced, target, isPristine: true });
    const setup = receiveSetupOf([block], false);
    const geometry = { name: announced.name, ...geometryOf(announced, CHUNK_BYTES) };
    this.door = createFaultDoor([geometry], setup.control.gate);
    for (let index = 0; index < PAGES / 32; index += 1) discardPages(this.door, 0, index, -1);
    Atomics.store(this.door.words, ARMED, 1);
    this.#receive = { ...setup, door: this.door };
    const numbers = Array.from({ length: LANES }, (_, lane) => lane);
    this.#lanes = {
      source: new Lanes(
        numbers.map(() => ({
          side: "source",
          send: this.#send,
          words: this.#words.source,
          served: createLatencies(),
        })),
      ),
      destination: new Lanes(
        numbers.map((lane) => ({
          side: "destination",
          receive: this.#receive,
          words: this.#words.destination,
          lane,
          lanes: LANES,
        })),
      ),
    };
  }

  static async start(): Promise<Faulting> {
    const faulting = new Faulting();
    const { source, destination } = faulting.#lanes;
    onTestFinished(() => faulting.#close());
    await Promise.all([source.start(), destination.start()]);
    for (let lane = 0; lane < LANES; lane += 1) await faulting.#connect(lane);
    for (const words of Object.values(faulting.#words)) tellLanes(words, OPEN);
    return faulting;
  }

  /** Asks for a page as a vCPU does, and does not wait for it. */
  ask(seat: number, page: number): void {
    awaitPage(this.door, { seat, block: 0, page }, 0);
  }

  /** Until it holds: a lane looks for questions by itself, and what it does passes here. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await new Promise((resolve) => setImmediate(resolve));
  }

  hasRequested(page: number): boolean {
    return this.requestsOf(page).length > 0;
  }

  requestsOf(page: number): Said[] {
    return this.said.filter((each) => each.frame === "request" && each.page === page);
  }

  isThere(page: number): boolean {
    return isPresent(this.door, 0, page);
  }

  expectExact(pages: Iterable<number>): void {
    const [wanted, found] = [this.#memory.source.read(), this.#memory.target.read()];
    for (const page of pages) {
      const range = [page * PAGE_BYTES, (page + 1) * PAGE_BYTES] as const;
      expect(Buffer.compare(wanted.subarray(...range), found.subarray(...range)), `${page}`).toBe(
        0,
      );
    }
  }

  /** The source has nothing more: every lane ends as it should. */
  async end(): Promise<void> {
    tellLanes(this.#words.source, FINISH);
    await Promise.all(Object.values(this.#lanes).map((lanes) => lanes.ended()));
  }

  async #connect(lane: number): Promise<void> {
    const [here, there] = [await pairs.make(), await pairs.make()];
    const failed = (error: unknown): void => {
      throw error;
    };
    const channel = lane + 1;
    const { source, destination } = this.#lanes;
    source.serve(lane, placeOf(threadDescriptorOf(here.near), { channel }), failed);
    destination.serve(lane, placeOf(threadDescriptorOf(there.near), { channel }), failed);
    for (const [from, to] of [
      [here.far, there.far],
      [there.far, here.far],
    ] as const) {
      const splitter = new FrameSplitter();
      from.on("data", (bytes: Buffer) => {
        for (const { name, bytes: frame } of splitter.push(bytes)) {
          const page = name === "request" ? frame.readUInt32LE(HEADER_BYTES + 4) : -1;
          this.said.push({ lane, frame: name, page });
        }
        to.write(bytes);
      });
      from.resume();
    }
  }

  async #close(): Promise<void> {
    for (const { control } of [this.#send, this.#receive]) stopWorkers(control);
    for (const lanes of Object.values(this.#lanes)) await lanes.close();
  }
}

test(`every lane carries pages, each for its seats, and a page that several wait for is asked for once (SEED=${seed})`, async () => {
  const faulting = await Faulting.start();
  const shared = 5;
  // Both lanes have somebody who wants this one, and somebody who wants another after it.
  const own = [0, 1, 2, 3].map((seat) => 20 + seat);
  for (const seat of [0, 1]) faulting.ask(seat, shared);
  await faulting.until(() => faulting.isThere(shared));
  for (const [index, page] of own.entries()) faulting.ask(2 + index, page);
  for (const seat of [6, 7]) faulting.ask(seat, 40);
  for (const seat of [8, 9]) faulting.ask(seat, 50 + seat);
  const pages = [shared, ...own, 40, 58, 59];
  await faulting.until(() => pages.every((page) => faulting.isThere(page)));
  // Whoever asked with the highest seat was served after all others of its lane.
  for (const page of pages) expect(faulting.requestsOf(page), `page ${page}`).toHaveLength(1);
  for (const [index, page] of own.entries()) {
    expect(faulting.requestsOf(page)[0]?.lane).toBe(index % LANES);
  }
  for (let lane = 0; lane < LANES; lane += 1) {
    const answers = faulting.said.filter((each) => each.frame === "pages" && each.lane === lane);
    expect(answers.length, `lane ${lane}`).toBe(
      faulting.said.filter((each) => each.frame === "request" && each.lane === lane).length,
    );
    expect(answers.length).toBeGreaterThanOrEqual(own.length / LANES);
  }
  faulting.expectExact(pages);
  await faulting.end();
});

/** Far more than a lane takes while one of them is written. */
const FLOOD = 200;
const TURNS = 10;

test(`a vCPU that floods its lane is asked for once more at the most before another one (SEED=${seed})`, async () => {
  const faulting = await Faulting.start();
  const random = new Prng(seed);
  // All of one lane, and in the way of each other: the patient one has the highest seat.
  const [greedy, patient] = [0, 2 * LANES];
  let next = 0;
  const asked: number[] = [];
  for (let turn = 0; turn < TURNS; turn += 1) {
    const before = random.below(FLOOD);
    for (let count = 0; count < FLOOD + before; count += 1) {
      if (count === before) {
        faulting.ask(patient, PAGES - 1 - turn);
        asked.push(next);
      }
      faulting.ask(greedy, next);
      next += 1;
    }
    await faulting.until(() => faulting.hasRequested(PAGES - 1 - turn));
  }
  const requests = faulting.said.filter(({ frame, lane }) => frame === "request" && lane === 0);
  for (const [turn, first] of asked.entries()) {
    const at = requests.findIndex(({ page }) => page === PAGES - 1 - turn);
    const overtook = requests.slice(0, at).filter(({ page }) => page >= first && page < next);
    expect(overtook.length, `turn ${turn}`).toBeLessThanOrEqual(1);
  }
  // And the flood itself was served, too.
  const last = must(requests.findLast(({ page }) => page < next)?.page, "it asked often");
  await faulting.until(() => faulting.isThere(last) && faulting.isThere(PAGES - TURNS));
  faulting.expectExact([last, ...asked.map((_, turn) => PAGES - 1 - turn)]);
  await faulting.end();
});
