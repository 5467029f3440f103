import { readdirSync, readFileSync } from "node:fs";
import { getPriority, setPriority } from "node:os";

/** The last of all that Linux has for what runs at all times. */
const NICE = 19;

/** What Node calls the threads that V8 has for the whole process: they compile code and collect garbage. */
const NAME = "V8Worker";

const TASKS = "/proc/self/task";

interface Lowered {
  readonly thread: number;
  readonly nice: number;
}

let holders = 0;
let lowered: readonly Lowered[] = [];

/**
 * Has V8's own threads step behind all others until the function that it returns is called; where several
 * hold them back, until each has. While a guest waits for pages, one that compiles for milliseconds would
 * keep a processor from the lane or the vCPU that a page has come for. Only where they may rise again;
 * elsewhere nothing happens. `threads` is what `v8Threads` found, which takes longer.
 */
export function holdBack(threads: readonly number[]): () => void {
  if (holders === 0) lowered = lower(threads);
  holders += 1;
  let isHeld = true;
  return () => {
    if (!isHeld) return;
    isHeld = false;
    holders -= 1;
    if (holders > 0) return;
    for (const { thread, nice } of lowered) tryPriority(thread, nice);
    lowered = [];
  };
}

function lower(threads: readonly number[]): Lowered[] {
  return threads.flatMap((thread) => {
    const nice = orNull(() => getPriority(thread));
    // One that may not be raised now could not be raised again.
    const isLowered =
      nice !== null && nice < NICE && tryPriority(thread, nice - 1) && tryPriority(thread, NICE);
    return isLowered ? [{ thread, nice }] : [];
  });
}

/** V8's own threads in this process, for as long as it lasts. None where this is not Linux. */
export function v8Threads(): number[] {
  const threads = orNull(() => readdirSync(TASKS)) ?? [];
  const nameOf = (thread: string) => orNull(() => readFileSync(`${TASKS}/${thread}/comm`, "utf8"));
  return threads.filter((thread) => nameOf(thread)?.trim() === NAME).map(Number);
}

/** Linux takes the number of a thread where others take a process. */
function tryPriority(thread: number, nice: number): boolean {
  return orNull(() => setPriority(thread, nice)) !== null;
}

/** Of a thread that is gone there is nothing to be had, and what is not allowed is not done. */
function orNull<T>(call: () => T): T | null {
  try {
    return call();
  } catch {
    return null;
  }
}
