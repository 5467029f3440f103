import { expect, test } from "vitest";
import { Prefetch } from "../workers/prefetch.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const PAGES = 4096;

interface Walked {
  readonly faults: number;
  /** Pages that came unasked. */
  readonly unasked: number;
  /** Of those, the ones that the guest never came to. */
  readonly useless: number;
}

/** A guest that touches these pages in turn and asks for those that are missing. */
function walked(touches: readonly number[], pageCount: number): Walked {
  const prefetch = new Prefetch();
  const present = new Set<number>();
  let [faults, unasked] = [0, 0];
  for (const page of touches) {
    if (present.has(page)) continue;
    faults += 1;
    present.add(page);
    for (const each of prefetch.fault(0, page)) {
      if (each < 0 || each >= pageCount || present.has(each)) continue;
      present.add(each);
      unasked += 1;
    }
  }
  const touched = new Set(touches);
  const useless = [...present].filter((page) => !touched.has(page)).length;
  return { faults, unasked, useless };
}

function steps(from: number, step: number): number[] {
  return Array.from({ length: PAGES }, (_, index) => from + step * index);
}

test("a first fault gets a few pages on either side, the nearest first", () => {
  expect(new Prefetch().fault(0, 100)).toEqual([101, 99, 102, 98]);
});

/** Ways through memory in which a page tells the next one, and how many faults they may cost. */
const WALKS: readonly (readonly [name: string, touches: readonly number[]])[] = [
  ["forward", steps(1000, 1)],
  ["backward", steps(60_000, -1)],
  ["in strides", steps(100, 7)],
  ["in strides, backward", steps(60_000, -13)],
];

for (const [name, touches] of WALKS) {
  test(`a guest that walks ${name} asks for one page of 64 and gets little that it does not want`, () => {
    const { faults, useless } = walked(touches, 2 ** 16);
    expect(faults).toBeLessThanOrEqual(PAGES / 64 + 8);
    expect(useless).toBeLessThanOrEqual(64);
  });
}

test("a window doubles each time that its end is reached, up to 64 pages", () => {
  for (const direction of [1, -1]) {
    const prefetch = new Prefetch();
    prefetch.fault(0, 10_000);
    let page = 10_000 + direction * 3;
    const windows = Array.from({ length: 6 }, () => {
      const pages = prefetch.fault(0, page);
      expect(pages[0]).toBe(page + direction);
      page += direction * (pages.length + 1);
      return pages.length;
    });
    expect(windows).toEqual([8, 16, 32, 64, 64, 64]);
  }
});

test("a fault for what is on its way keeps the window as it is", () => {
  const prefetch = new Prefetch();
  for (const page of [0, 3, 12]) prefetch.fault(0, page);
  expect(prefetch.fault(0, 13)).toEqual(steps(14, 1).slice(0, 16));
});

test("walks of several vCPUs by turns are told apart", () => {
  const up = steps(1000, 1);
  const down = steps(60_000, -1);
  const { faults, useless } = walked(
    up.flatMap((page, index) => [page, down[index] ?? 0]),
    2 ** 16,
  );
  expect(faults).toBeLessThanOrEqual(2 * (PAGES / 64 + 8));
  expect(useless).toBeLessThanOrEqual(2 * 64);
});

test("a block's walk is nothing to another block", () => {
  const prefetch = new Prefetch();
  prefetch.fault(0, 100);
  expect(prefetch.fault(1, 103)).toHaveLength(2);
});

test(`random faults get seven pages in all, and then nothing (SEED=${seed})`, () => {
  const random = new Prng(seed);
  // So far apart that no two of them make a walk.
  const touches = Array.from({ length: 1000 }, (_, index) => index * 2000 + random.below(1400));
  for (let at = touches.length - 1; at > 0; at -= 1) {
    const other = random.below(at + 1);
    [touches[at], touches[other]] = [touches[other] ?? 0, touches[at] ?? 0];
  }
  expect(walked(touches, 2 ** 21)).toMatchObject({ faults: 1000, unasked: 4 + 2 + 1 });
});

test(`of a memory that is touched all over at random, next to nothing comes unasked (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const touches = Array.from({ length: 8 * PAGES }, () => random.below(PAGES));
  const { unasked } = walked(touches, PAGES);
  expect(unasked).toBeLessThan(PAGES / 20);
});

test(`a guest that walks among random faults is served all the same, and they cost little (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const touches = steps(0, 1).flatMap((page) => [page, 2 ** 15 + random.below(2 ** 20)]);
  const { faults, useless } = walked(touches, 2 ** 21);
  expect(faults).toBeLessThan(PAGES * 1.5);
  expect(useless).toBeLessThan(PAGES / 10);
});
