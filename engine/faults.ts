import type { FaultDoor } from "../workers/fault-door.ts";
import type { OwnFaults } from "../workers/own-faults.ts";

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
 * wakes nobody, which is more than half of what a page takes while bulk channels are idle. Beside busy ones
 * the lane's thread brings it, as by the other `awaitPage`, and so it does where its channel cannot be opened
 * here. Opens files of the guest's memory in the calling thread; close it when the guest's memory is all
 * there, or the thread ends. While it waits it uses a processor for up to 0.2 ms at a time, and Linux wakes
 * this thread from sleeps without delay from now on.
 */
export async function openFaults(door: FaultDoor): Promise<OwnFaults> {
  const { OwnFaults } = await import("../workers/own-faults.ts");
  return await OwnFaults.open(door);
}

/** Loads what `openFaults` needs, where a guest is expected: once it is paused everybody waits for that. */
export async function prepareFaults(): Promise<void> {
  await import("../workers/own-faults.ts");
}
