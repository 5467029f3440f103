import { must } from "../../base/assert.ts";
import { FRAMES, type FrameName, HEADER_BYTES } from "../../channels/frame.ts";

/** One frame as it crosses the relay, header included. */
export interface PassingFrame {
  readonly name: FrameName;
  readonly bytes: Buffer;
}

const NAME_OF_KIND = new Map<number, FrameName>(
  Object.entries(FRAMES).map(([name, { kind }]) => [kind, name as FrameName]),
);

/** Cuts a stream of bytes into whole frames. It trusts both ends: they are ours. */
export class FrameSplitter {
  /** What came and was not given out yet: joined once per frame, for large ones come in many. */
  #pieces: Buffer[] = [];
  #length = 0;
  /** As many must be there before anything can be given out. */
  #needed = HEADER_BYTES;

  *push(bytes: Buffer): Generator<PassingFrame> {
    this.#pieces.push(bytes);
    this.#length += bytes.length;
    while (this.#length >= this.#needed) {
      const unread = this.rest;
      const size = HEADER_BYTES + unread.readUInt32LE(12);
      this.#needed = size;
      if (unread.length < size) return;
      const frame = unread.subarray(0, size);
      this.#pieces = [unread.subarray(size)];
      this.#length -= size;
      this.#needed = HEADER_BYTES;
      const name = must(NAME_OF_KIND.get(frame.readUInt8(4)), "our ends send frames that exist");
      yield { name, bytes: frame };
    }
  }

  /** What came of a frame that is not whole yet. */
  get rest(): Buffer {
    if (this.#pieces.length > 1) this.#pieces = [Buffer.concat(this.#pieces, this.#length)];
    return this.#pieces[0] ?? Buffer.alloc(0);
  }
}
