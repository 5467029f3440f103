import { ReadyThreads } from "../../engine/ready-threads.ts";

/** As many as most migrations of tests have channels, and those that may come to post-copy. */
const COUNT = 2;
const LANES = 1;

let kept: Promise<{ source: ReadyThreads; destination: ReadyThreads }> | null = null;

/**
 * Threads that serve one migration of this process after another. Starting them for each would be most
 * of what a short test costs. They end with the process.
 */
export function keptThreads(): NonNullable<typeof kept> {
  kept ??= start();
  return kept;
}

/** All of them run when it returns: what a test holds is counted before its first migration. */
async function start(): Promise<{ source: ReadyThreads; destination: ReadyThreads }> {
  const source = new ReadyThreads("source", COUNT, { lanes: LANES });
  const destination = new ReadyThreads("destination", COUNT, { lanes: LANES });
  await Promise.all([source.started(), destination.started()]);
  return { source, destination };
}
