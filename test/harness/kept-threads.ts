import { PageThread } from "../../engine/page-thread.ts";
import { laneModule, pageModule, ReadyThreads } from "../../engine/ready-threads.ts";

/** As many as most migrations of tests have channels, and those that may come to post-copy. */
const COUNT = 2;
const LANES = 1;

interface Kept {
  readonly source: ReadyThreads;
  readonly destination: ReadyThreads;
}

let kept: Promise<Kept> | null = null;

/**
 * Threads that serve one migration of this process after another. Starting them for each would be most
 * of what a short test costs. They end with the process.
 */
export function keptThreads(): Promise<Kept> {
  kept ??= start();
  return kept;
}

/**
 * Starts others for those that a failure has cost. What a test holds is counted before it and after it:
 * there are as many before its first migration as after its last one.
 */
export async function refillThreads(): Promise<void> {
  const { source, destination } = await keptThreads();
  for (const threads of [source, destination]) {
    for (const [store, module, count] of [
      [threads.pages, pageModule(threads.side), COUNT],
      [threads.lanes, laneModule(), LANES],
    ] as const) {
      if (store.count === count) continue;
      while (store.count < count) store.keep(new PageThread(module));
      await store.started();
    }
  }
}

/** All of them run when it returns. */
async function start(): Promise<Kept> {
  const source = new ReadyThreads("source", COUNT, { lanes: LANES });
  const destination = new ReadyThreads("destination", COUNT, { lanes: LANES });
  await Promise.all([source.started(), destination.started()]);
  return { source, destination };
}
