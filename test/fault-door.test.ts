import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { expect, onTestFinished, test, vi } from "vitest";
import {
  askAgain,
  awaitPage,
  BELL,
  claimPages,
  createFaultDoor,
  discardPages,
  type FaultDoor,
  isClaimed,
  isWhole,
  linkOf,
  MISSING,
  markPresent,
  reconcile,
  setLink,
  takeQuestion,
} from "../workers/fault-door.ts";
import { createGate } from "../workers/gate.ts";
import { withInterruptions } from "./fixtures/dirty-interruptions.ts";

const ASKER = fileURLToPath(new URL("./fixtures/fault-asker.ts", import.meta.url));
const WAITER = fileURLToPath(new URL("./fixtures/fault-waiter.ts", import.meta.url));

const SEAT = 3;

/** Nobody waits so long in a test that succeeds. */
const PATIENT_MS = 20_000;

interface Question {
  readonly block: number;
  readonly page: number;
}

/** The page of the one lies beyond the block of the other: what is mixed up is seen. */
const FORMER: Question = { block: 0, page: 900 };
const NEXT: Question = { block: 1, page: 7 };

/** Pages of two blocks, all of them missing; nobody has asked yet. */
function allMissing(pageCount = 1024): FaultDoor {
  const door = createFaultDoor(
    [
      { name: "ram", pageBytes: 4096, pageCount },
      { name: "rom", pageBytes: 4096, pageCount: 32 },
    ],
    createGate(),
  );
  for (let index = 0; index < pageCount / 32; index += 1) discardPages(door, 0, index, -1);
  discardPages(door, 1, 0, -1);
  return door;
}

function ask(door: FaultDoor, question: Question): boolean {
  return awaitPage(door, { seat: SEAT, ...question }, 0);
}

/** What the lane is to ask for now. */
function takeAll(door: FaultDoor): Question[] {
  const questions: Question[] = [];
  for (;;) {
    const question = takeQuestion(door, { from: SEAT, lane: 0, lanes: 1 });
    if (question === null) return questions;
    questions.push({ block: question.block, page: question.page });
  }
}

/** What runs, what comes in between, and what must hold afterwards. */
interface Race {
  run(): void;
  interrupt(): void;
  check(): void;
}

/** Holds `run` before each of its accesses in turn while `interrupt` runs, each time from the start. */
function atEveryMoment(race: (door: FaultDoor) => Race): void {
  for (let moment = 1; ; moment += 1) {
    const { run, interrupt, check } = race(allMissing());
    let accesses = 0;
    withInterruptions(() => {
      accesses += 1;
      if (accesses === moment) interrupt();
    }, run);
    if (accesses < moment) {
      expect(moment).toBeGreaterThan(4);
      return;
    }
    check();
  }
}

test("a question that follows while the lane takes the former one is asked, whenever it comes", () => {
  atEveryMoment((door) => {
    const taken: Question[] = [];
    ask(door, FORMER);
    return {
      run: () => taken.push(...takeAll(door)),
      interrupt: () => ask(door, NEXT),
      check: () => {
        taken.push(...takeAll(door));
        expect([[NEXT], [FORMER, NEXT]]).toContainEqual(taken);
      },
    };
  });
});

test("a question is taken whole or not at all, whenever the lane looks, and its bell is not missed", () => {
  atEveryMoment((door) => {
    const taken: Question[] = [];
    let bell = 0;
    let isDone = false;
    ask(door, FORMER);
    return {
      run: () => ask(door, NEXT),
      interrupt: () => {
        bell = Atomics.load(door.words, BELL);
        taken.push(...takeAll(door));
        isDone = taken.at(-1)?.block === NEXT.block;
      },
      check: () => {
        expect(isDone || Atomics.load(door.words, BELL) !== bell).toBe(true);
        taken.push(...takeAll(door));
        expect([[NEXT], [FORMER, NEXT]]).toContainEqual(taken);
      },
    };
  });
});

test("a question that is asked again while the next one is written is not mixed up with it", () => {
  atEveryMoment((door) => {
    const taken: Question[] = [];
    ask(door, FORMER);
    taken.push(...takeAll(door));
    return {
      run: () => ask(door, NEXT),
      interrupt: () => {
        reconcile(door);
        askAgain(door);
        taken.push(...takeAll(door));
      },
      check: () => {
        taken.push(...takeAll(door));
        expect([
          [FORMER, NEXT],
          [FORMER, FORMER, NEXT],
        ]).toContainEqual(taken);
      },
    };
  });
});

test("a page that others bring while it is waited for leaves no question behind", () => {
  const door = allMissing();
  const word = [FORMER.block, FORMER.page >>> 5, 1 << (FORMER.page & 31)] as const;
  // It comes as soon as the vCPU has asked, and rings.
  const ring = vi.spyOn(Atomics, "notify").mockImplementationOnce(() => {
    markPresent(door, ...word);
    return 0;
  });
  onTestFinished(() => ring.mockRestore());
  expect(ask(door, FORMER)).toBe(true);
  // Who would still ask for it does so now.
  discardPages(door, ...word);
  expect(takeAll(door)).toEqual([]);
});

test("a vCPU that changes its mind while a lane looks gets every page that it waits for", () => {
  const pageCount = 4096;
  const door = allMissing(pageCount);
  const words = new Int32Array(new SharedArrayBuffer(8));
  const asker = new Worker(ASKER, { workerData: { door, words } });
  onTestFinished(async () => void (await asker.terminate()));
  let from = 0;
  while (Atomics.load(words, 1) === 0) {
    const question = takeQuestion(door, { from, lane: 0, lanes: 1 });
    if (question === null) continue;
    from = question.seat;
    const { block, page } = question;
    if (block === 0) markPresent(door, 0, page >>> 5, 1 << (page & 31));
    else {
      expect(page).toBeLessThan(32);
      Atomics.store(door.blocks[1]?.requested as Int32Array, 0, 0);
    }
  }
  expect(Atomics.load(words, 0)).toBe(pageCount);
});

test("who waits asks once more for what is still missing, and nobody else does", () => {
  const door = allMissing();
  const questions = [0, 1, 2, 3].map((seat) => ({ seat, block: 0, page: 10 * seat }));
  for (const question of questions.slice(1)) awaitPage(door, question, 0);
  expect(takeAll(door)).toHaveLength(3);
  markPresent(door, 0, 0, 1 << 20);
  expect(awaitPage(door, { seat: 2, block: 0, page: 20 }, 0)).toBe(true);
  askAgain(door);
  expect(takeAll(door)).toEqual([]);
  reconcile(door);
  const bell = Atomics.load(door.words, BELL);
  askAgain(door);
  expect(Atomics.load(door.words, BELL)).not.toBe(bell);
  expect(takeAll(door)).toEqual([
    { block: 0, page: 30 },
    { block: 0, page: 10 },
  ]);
});

test("what a lane that is gone has claimed is somebody else's to place, and to ask for", () => {
  const door = createFaultDoor([{ name: "ram", pageBytes: 4096, pageCount: 64 }], createGate());
  discardPages(door, 0, 0, 0b11);
  ask(door, { block: 0, page: 1 });
  expect(takeAll(door)).toHaveLength(1);
  expect(claimPages(door, 0, 0, 0b11)).toBe(0b11);
  markPresent(door, 0, 0, 0b01);
  // As after a thread that ended between a page and the count of it.
  Atomics.store(door.words, MISSING, 7);
  expect(reconcile(door)).toBe(1);
  expect(Atomics.load(door.words, MISSING)).toBe(1);
  expect(isWhole(door)).toBe(false);
  expect([0, 1, 63].map((page) => isClaimed(door, 0, page))).toEqual([true, false, true]);
  expect(Atomics.load(door.blocks[0]?.requested as Int32Array, 0)).toBe(0);
  expect(claimPages(door, 0, 0, 0b11)).toBe(0b10);
  markPresent(door, 0, 0, 0b10);
  expect(isWhole(door)).toBe(true);
});

test("a page that is asked for again is waited for since it was asked for first, another one is not", () => {
  const door = allMissing();
  ask(door, FORMER);
  door.sinceMs[SEAT] = 1;
  ask(door, FORMER);
  expect(takeQuestion(door, { from: SEAT, lane: 0, lanes: 1 })).toMatchObject({ sinceMs: 1 });
  ask(door, NEXT);
  expect(door.sinceMs[SEAT]).toBeGreaterThan(1);
});

test("who waits without a limit goes on through a pause, and is told when the link is given up", async () => {
  const door = allMissing();
  const pages = [FORMER.page, FORMER.page + 1];
  const waiter = new Worker(WAITER, { workerData: { door, seat: SEAT, block: 0, pages } });
  onTestFinished(async () => void (await waiter.terminate()));
  const next = async (): Promise<unknown> => (await once(waiter, "message"))[0];
  await untilAsked(door, FORMER);
  setLink(door, "paused");
  // It asks again, as after a recovery, and has its page.
  reconcile(door);
  askAgain(door);
  const came = next();
  markPresent(door, 0, FORMER.page >>> 5, 1 << (FORMER.page & 31));
  expect(await came).toEqual({ page: FORMER.page, isThere: true, link: "paused" });
  setLink(door, "open");
  await untilAsked(door, { block: 0, page: FORMER.page + 1 });
  const gone = next();
  setLink(door, "given-up");
  expect(await gone).toMatchObject({
    page: FORMER.page + 1,
    failure: { code: "POSTCOPY_INTERRUPTED", at: "destination" },
    link: "given-up",
  });
});

test("what is there is there, whatever becomes of the link, and what is not is refused at once", () => {
  const door = allMissing();
  expect(linkOf(door)).toBe("open");
  markPresent(door, 0, 0, 1);
  setLink(door, "given-up");
  expect(ask(door, { block: 0, page: 0 })).toBe(true);
  const patient = () => awaitPage(door, { seat: SEAT, ...NEXT }, PATIENT_MS);
  expect(patient).toThrow('page 7 of "rom" will not come');
  expect(Atomics.load(door.gate, 0), "nobody waits at the gate").toBe(0);
});

test("a thread that is ended while it waits keeps the gate closed until its page is there, and no longer", async () => {
  const door = allMissing();
  const asking = { door, seat: SEAT, block: FORMER.block, pages: [FORMER.page] };
  const waiter = new Worker(WAITER, { workerData: asking });
  await untilAsked(door, FORMER);
  await waiter.terminate();
  takeAll(door);
  expect(Atomics.load(door.gate, 0), "its page is missing").toBe(1);
  markPresent(door, 0, FORMER.page >>> 5, 1 << (FORMER.page & 31));
  takeAll(door);
  expect(Atomics.load(door.gate, 0), "the lane has looked").toBe(0);
});

test("a seat whose thread was ended is another's, who opens the gate for both", async () => {
  const door = allMissing();
  const asking = { door, seat: SEAT, block: FORMER.block, pages: [FORMER.page] };
  const waiter = new Worker(WAITER, { workerData: asking });
  await untilAsked(door, FORMER);
  await waiter.terminate();
  ask(door, NEXT);
  expect(Atomics.load(door.gate, 0)).toBe(0);
});

test("the gate is closed for whoever waits, and opened once, whenever the lane looks", () => {
  atEveryMoment((door) => {
    ask(door, FORMER);
    markPresent(door, FORMER.block, FORMER.page >>> 5, 1 << (FORMER.page & 31));
    let closedFor = 0;
    const wait = vi.spyOn(Atomics, "wait").mockImplementation(() => {
      closedFor = Atomics.load(door.gate, 0);
      markPresent(door, NEXT.block, 0, 1 << NEXT.page);
      return "ok";
    });
    return {
      run: () => awaitPage(door, { seat: SEAT, ...NEXT }, PATIENT_MS),
      interrupt: () => takeAll(door),
      check: () => {
        wait.mockRestore();
        expect([closedFor, Atomics.load(door.gate, 0)]).toEqual([1, 0]);
      },
    };
  });
});

test("a lane that opens the gate of an ended thread mixes up nothing when the seat is used again", () => {
  atEveryMoment((door) => {
    leaveClosed(door, NEXT);
    return {
      run: () => takeAll(door),
      interrupt: () => ask(door, FORMER),
      check: () => expect(Atomics.load(door.gate, 0)).toBe(0),
    };
  });
});

/** As a thread leaves its seat that was ended while it waited; the lane has its question, and its page came. */
function leaveClosed(door: FaultDoor, question: Question): void {
  const exchange = vi.spyOn(Atomics, "exchange").mockReturnValue(0 as never);
  ask(door, question);
  exchange.mockRestore();
  const at = SEAT * 4;
  Atomics.store(door.seats, at + 3, Atomics.load(door.seats, at));
  takeAll(door);
  markPresent(door, question.block, question.page >>> 5, 1 << (question.page & 31));
  expect(Atomics.load(door.gate, 0)).toBe(1);
}

/** Until a lane sees this question. */
async function untilAsked(door: FaultDoor, question: Question): Promise<void> {
  for (;;) {
    if (takeAll(door).some((taken) => taken.page === question.page)) return;
    await new Promise((resolve) => setImmediate(resolve));
  }
}
