/**
 * Makes the payload of a frame smaller. A payload holds the pages of many runs: single pages would
 * compress worse and many times slower. One file each, one row in the list.
 */
export interface Codec {
  /** Identifies it on the wire; never reused, never renumbered; zero is "not compressed". */
  readonly number: number;
  readonly name: string;
  readonly meaning: string;

  /** Runs at the source. The result is new memory, and may be larger than `source`. */
  compress(source: Uint8Array, level: number): Uint8Array;

  /**
   * Runs at the destination, on bytes that nobody has checked. Returns exactly `bytes` bytes, or
   * null for whatever does not expand to just that; never makes more than `bytes` on the way.
   */
  expand(source: Uint8Array, bytes: number): Uint8Array | null;
}
