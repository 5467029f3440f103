/** Whether two ranges of one length hold the same bytes. At memory speed, also for shared memory. */
export function sameBytes(first: Uint8Array, second: Uint8Array): boolean {
  return Buffer.compare(first, second) === 0;
}
