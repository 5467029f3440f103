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
  linkOf,
  SEATS_MAX,
} from "../workers/fault-door.ts";
