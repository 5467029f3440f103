import { getPriority, setPriority } from "node:os";
import type { Control } from "./control.ts";

/** The longest that a bulk thread steps aside at a frame: faults without end must not starve it. */
const YIELD_MS_MAX = 1;

/** Given up for good by a bulk thread in post-copy. */
const NICE = 10;

/**
 * Asked for by a lane: what waits for it is a guest, and what it does takes microseconds. Else a thread
 * that compiles code or collects garbage keeps the processor for milliseconds when a page comes.
 */
const NICE_OF_LANES = -15;

/** A cache line: what each word is stands with `Control`. */
const GATE_WORDS = 16;

/** Open, and before any post-copy. */
export function createGate(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(GATE_WORDS * 4));
}

/** Of this thread, before it stepped back; null while it has not. */
let niceBefore: number | null = null;

/** A guest waits for a page. */
export function closeGate({ gate }: Pick<Control, "gate">): void {
  Atomics.add(gate, 2, 1);
  Atomics.add(gate, 0, 1);
}

/** How often the gate was closed so far; it may wrap. */
export function faultsSoFar({ gate }: Pick<Control, "gate">): number {
  return Atomics.load(gate, 2);
}

export function openGate({ gate }: Pick<Control, "gate">): void {
  if (Atomics.sub(gate, 0, 1) === 1) Atomics.notify(gate, 0);
}

/** From now on bulk threads stand behind the lanes' also for the processor. */
export function beginPostcopy({ gate }: Control): void {
  Atomics.store(gate, 1, 1);
}

/** Called by bulk threads before each frame: steps aside while a page is waited for, but not long. */
export function passGate({ gate }: Control): void {
  if (Atomics.load(gate, 1) === 0) return;
  if (niceBefore === null) {
    niceBefore = getPriority();
    standAt(NICE);
  }
  const closed = Atomics.load(gate, 0);
  if (closed > 0) Atomics.wait(gate, 0, closed, YIELD_MS_MAX);
}

/** Whether the guest runs at the destination, and may wait for a page at any time. */
export function isPostcopy({ gate }: Control): boolean {
  return Atomics.load(gate, 1) !== 0;
}

/** For a bulk thread that is to serve another migration. Throws where a thread may not rise again. */
export function stepForward(): void {
  if (niceBefore === null) return;
  setPriority(0, niceBefore);
  niceBefore = null;
}

/** For the thread of a lane. */
export function comeFirst(): void {
  standAt(NICE_OF_LANES);
}

/** Linux lowers and raises just the thread that asks. */
function standAt(nice: number): void {
  try {
    setPriority(0, nice);
  } catch {
    // Not allowed here, as for most users to come first: the gate is what matters.
  }
}
