/**
 * What an embedder imports from "multifd/memory-guest": a host in this process whose guest really
 * writes memory, and which can tell every page that a migration lost, tore or damaged. It is for
 * trying and measuring an engine without a hypervisor.
 */
export {
  MemoryGuestDestination,
  type MemoryGuestDestinationOptions,
} from "./memory-guest/destination.ts";
export { MemoryGuest } from "./memory-guest/guest.ts";
export type { ContentMix, GuestShape, Pattern, VcpuShape } from "./memory-guest/shape.ts";
