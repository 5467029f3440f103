import type { FaultDoor } from "../workers/fault-door.ts";
import type { OwnFaults } from "../workers/own-faults.ts";
import { rehearsed } from "../workers/rehearsed.ts";

/**
 * Faults for hosts: what a vCPU's thread calls before it touches a page that may not be there yet.
 * A host gets the door in `DestinationHost.takeFaults` and hands it to its threads: it is plain data
 * over shared memory.
 */
export {
  awaitPage,
  type FaultBlock,
  type FaultDoor,
  type FaultLink,
  isPresent,
  isWhole,
  linkOf,
  SEATS_MAX,
} from "../workers/fault-door.ts";
export type { OwnFaults };

/**
 * For a thread that fetches what it misses itself, by `awaitPage` of what is returned: it is not woken and
 * wakes nobody, which is more than half of what a page takes. The lane's thread brings what another vCPU is
 * fetching for already, what takes longer, and all where its channel cannot be opened here. Opens files of
 * the guest's memory in the calling thread; close it when the guest's memory is all there, or the thread
 * ends. While it waits it uses a processor for up to 5 ms at a time, and Linux wakes this thread from
 * sleeps without delay from now on.
 */
export async function openFaults(door: FaultDoor): Promise<OwnFaults> {
  isExpected = true;
  const { OwnFaults } = await import("../workers/own-faults.ts");
  await rehearsal;
  return await OwnFaults.open(door);
}

/** Of this thread. */
let rehearsal: Promise<void> | null = null;
/** Somebody waits for this thread: it rehearses no longer. */
let isExpected = false;

/**
 * Loads what `openFaults` needs in the calling thread, and rehearses it there for some 0.6 s of a
 * processor, so that the first pages do not take twice as long as others. For where a guest may go over
 * before its memory, of which `prepare` is told; or before a guest comes at all. Ends early when `openFaults` is called meanwhile.
 */
export function prepareFaults(): Promise<void> {
  rehearsal ??= learn();
  return rehearsal;
}

async function learn(): Promise<void> {
  const { rehearse } = await import("../workers/lane-rehearsal.ts");
  await rehearsed(rehearse("vcpu", () => isExpected));
}
