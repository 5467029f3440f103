import { afterAll, beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { Faulting, LANES, PAGES } from "./fixtures/faulting.ts";
import { SocketPairs } from "./fixtures/wire-pair.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

/** Two lanes with threads at both ends, and what they say to each other in between. */
const seed = seedFromEnvironment();

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

test(`every lane carries pages, each for its seats, and a page that several wait for is asked for once (SEED=${seed})`, async () => {
  const faulting = await Faulting.start(seed, pairs);
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
  expect(faulting.failures).toEqual([]);
});

/** Far more than a lane takes while one of them is written. */
const FLOOD = 200;
const TURNS = 10;

test(`a vCPU that floods its lane is asked for once more at the most before another one (SEED=${seed})`, async () => {
  const faulting = await Faulting.start(seed, pairs);
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
  expect(faulting.failures).toEqual([]);
});
