import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { must } from "../base/assert.ts";
import { type Clock, useClock } from "../base/clock.ts";
import { KIB } from "../base/units.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { geometryOf } from "../engine/block.ts";
import { createControl } from "../workers/control.ts";
import {
  ARMED,
  awaitPage,
  createFaultDoor,
  discardPages,
  isPresent,
} from "../workers/fault-door.ts";
import { createGate } from "../workers/gate.ts";
import { LaneReceiver } from "../workers/lane-receiver.ts";
import { LaneSender } from "../workers/lane-sender.ts";
import { createLaneState, MAY_ASK, openLane, REQUESTS } from "../workers/lane-state.ts";
import { createLaneWords, OPEN, tellLanes } from "../workers/lane-words.ts";
import { createLatencies } from "../workers/latencies.ts";
import { OwnFaults } from "../workers/own-faults.ts";
import { sharedMemory } from "./fixtures/wire-memory.ts";
import { SocketPairs, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import {
  CHUNK_BYTES,
  markPages,
  placeOf,
  receiveBlockOf,
  receiveSetupOf,
  sendBlockOf,
  sendSetupOf,
} from "./fixtures/wire-pipeline.ts";

const PAGE_BYTES = 4 * KIB;
const PAGES = 8192;
const LIMIT_MS = 10_000;

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

/** A clock that goes on with each look at it: nothing here takes long because the machine is busy. */
function steadyClock(): Clock {
  let now = 0;
  const nothing = (): void => {};
  return {
    nowMs() {
      now += 0.001;
      return now;
    },
    cpuMs: () => 0,
    after: () => nothing,
    every: () => nothing,
  };
}

/** A guest without its memory whose vCPU fetches by itself, and whoever answers it: both in this thread. */
async function makeVcpu() {
  const { near, far } = await pairs.make();
  const announced = { name: "ram", sizeBytes: PAGES * PAGE_BYTES, pageBytes: PAGE_BYTES };
  const [source, target] = [sharedMemory(PAGES * PAGE_BYTES), sharedMemory(PAGES * PAGE_BYTES)];
  const content = new Uint8Array(source.sizeBytes);
  for (let page = 0; page < PAGES; page += 1) {
    content.fill(1 + page, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }
  source.write(content);
  const sending = sendBlockOf({ ...announced, source });
  markPages(
    sending,
    Array.from({ length: PAGES }, (_, page) => page),
  );
  const words = createLaneWords();
  tellLanes(words, OPEN);
  const sender = new LaneSender(sendSetupOf([sending], false), placeOf(threadDescriptorOf(near)), {
    words,
    served: createLatencies(),
    checksum: null,
  });

  const gate = createGate();
  const receiving = receiveBlockOf({ ...announced, target, isPristine: true });
  const { control: _, ...common } = receiveSetupOf([receiving], false);
  const state = createLaneState();
  const door = createFaultDoor([{ name: "ram", ...geometryOf(announced, CHUNK_BYTES) }], gate, {
    states: [state],
    receive: { ...common, control: createControl(1, gate) },
  });
  for (let index = 0; index < PAGES / 32; index += 1) discardPages(door, 0, index, -1);
  Atomics.store(door.words, ARMED, 1);
  const threadPlace = placeOf(threadDescriptorOf(far));
  openLane(state, threadPlace);
  state.words[MAY_ASK] = 1;

  // As the lane's own thread has it.
  const lane = new LaneReceiver({ ...common, control: createControl(1, gate), door }, threadPlace, {
    state,
    lane: 0,
    lanes: 1,
    checksum: await loadChecksum(),
  });
  const requests = (): number => must(state.words[REQUESTS], "a lane counts its requests");
  let askedAtFirstLook: number | undefined;
  const faults = await OwnFaults.open(door, () => {
    askedAtFirstLook ??= requests();
    sender.look();
  });
  return {
    /** What lies there. */
    byteAt: (page: number, at: number) => target.read()[page * PAGE_BYTES + at],
    /** The lane's thread asks for a page that somebody else wants, and nobody looks for the answer. */
    async askForOther(page: number) {
      awaitPage(door, { seat: 1, block: 0, page }, 0);
      const before = requests();
      lane.look(words);
      expect(requests()).toBe(before + 1);
      await vi.waitFor(() => {
        sender.look();
        const word = must(sending.dirty.words[page >>> 5], "it is a page of the block");
        expect(word & (1 << (page & 31)), "it was sent").toBe(0);
      });
    },
    isThere: (page: number) => isPresent(door, 0, page),
    /** Whether it had asked for the page when it first looked for what comes. */
    fetch(page: number): boolean {
      askedAtFirstLook = undefined;
      const before = requests();
      expect(faults.awaitPage({ seat: 0, block: 0, page }, LIMIT_MS), `page ${page}`).toBe(true);
      return (askedAtFirstLook ?? 0) > before;
    },
    close() {
      for (const each of [sender, lane, faults]) each.close();
    },
  };
}

/** So far apart that a lane sends nothing else with them, once it has seen some. */
const STRAY_PAGES = 600;

test("a vCPU asks before it looks, unless pages have come lately that it had not waited for", async () => {
  const vcpu = await makeVcpu();
  onTestFinished(useClock(steadyClock()));
  let page = 0;
  const nextPage = (): number => {
    page += STRAY_PAGES;
    return page;
  };
  for (let count = 0; count < 5; count += 1) vcpu.fetch(nextPage());
  expect(vcpu.fetch(nextPage()), "nothing comes by itself").toBe(true);

  // What another one asked for has come, and nobody has read it.
  const other = nextPage();
  await vcpu.askForOther(other);
  expect(vcpu.isThere(other), "it lies in the lane").toBe(false);
  expect(vcpu.fetch(nextPage()), "it had no way to know").toBe(true);
  expect(vcpu.isThere(other)).toBe(true);
  expect(vcpu.fetch(nextPage()), "more may have come").toBe(false);
  expect(vcpu.fetch(nextPage()), "none had").toBe(true);

  for (let each = STRAY_PAGES; each <= page; each += STRAY_PAGES) {
    for (const at of [0, PAGE_BYTES - 1]) {
      expect(vcpu.byteAt(each, at), `page ${each}`).toBe((1 + each) & 0xff);
    }
  }
  vcpu.close();
});
