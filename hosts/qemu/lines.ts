import { KIB, MIB } from "../../base/units.ts";

/** QEMU's longest answer, its own schema, is some 200 KiB. */
export const LINE_BYTES_MAX = 4 * MIB;

const LINE_FEED = 0x0a;

/**
 * Cuts what comes from a socket into lines, wherever it was cut on the way. Throws RangeError for a
 * line beyond the limit: who sends that does not speak a protocol of lines.
 */
export class Lines {
  readonly #bytesMax: number;
  #rest: Buffer[] = [];
  #restBytes = 0;

  constructor(bytesMax = LINE_BYTES_MAX) {
    this.#bytesMax = bytesMax;
  }

  /** The lines that end in these bytes, without their ends. */
  push(bytes: Buffer): string[] {
    const lines: string[] = [];
    let from = 0;
    for (;;) {
      const end = bytes.indexOf(LINE_FEED, from);
      this.#keep(bytes.subarray(from, end < 0 ? bytes.length : end));
      if (end < 0) return lines;
      lines.push(this.#take());
      from = end + 1;
    }
  }

  #keep(piece: Buffer): void {
    this.#restBytes += piece.length;
    if (this.#restBytes > this.#bytesMax) {
      throw new RangeError(`it sent a line of more than ${this.#bytesMax / KIB} KiB`);
    }
    if (piece.length > 0) this.#rest.push(piece);
  }

  /** Decoded when it is whole: a cut may lie within a character. */
  #take(): string {
    const line = Buffer.concat(this.#rest).toString("utf8");
    this.#rest = [];
    this.#restBytes = 0;
    return line.endsWith("\r") ? line.slice(0, -1) : line;
  }
}
