/**
 * What the coordinator tells the threads of the priority lanes, in words that they sleep on:
 *
 *   OPEN     the guest runs at the destination: requests may come. Before, they are a breach. At
 *            the destination: the source's lanes are ready for them
 *   FINISH   at the source: nothing is left to send: say END, and end
 */
export const OPEN = 0;
export const FINISH = 1;

export function createLaneWords(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(64));
}

export function tellLanes(words: Int32Array, index: number): void {
  Atomics.store(words, index, 1);
  Atomics.notify(words, index);
}
