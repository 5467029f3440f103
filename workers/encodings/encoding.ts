import type { Counter } from "../control.ts";
import type { GuestWriter } from "../guest-writer.ts";

/** A run of consecutive pages of one block in one encoding. */
export interface Run {
  readonly firstPage: number;
  readonly pages: number;
}

/**
 * One way to describe a run of pages in fewer bytes. One file each, one row in the list; docs, wire
 * checks and statistics follow from the row.
 */
export interface PageEncoding {
  /** Identifies it on the wire; never reused, never renumbered, never zero. */
  readonly number: number;
  readonly name: string;
  readonly meaning: string;
  /** Where its pages are counted. */
  readonly counter: Counter;

  /** Whether a run of so many pages may have a payload of `bytes`. Checked before anything else. */
  isPayload(bytes: number, run: { pages: number; pageBytes: number }): boolean;

  /**
   * Runs at the destination, after `isPayload`. Must write nothing but the pages of the run, and
   * throws FRAME_CORRUPT unless the payload describes exactly them.
   */
  decode(payload: Uint8Array, run: Run, target: GuestWriter): void;
}
