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
  #unread: Buffer = Buffer.alloc(0);

  *push(bytes: Buffer): Generator<PassingFrame> {
    this.#unread = this.#unread.length === 0 ? bytes : Buffer.concat([this.#unread, bytes]);
    while (this.#unread.length >= HEADER_BYTES) {
      const size = HEADER_BYTES + this.#unread.readUInt32LE(12);
      if (this.#unread.length < size) return;
      const frame = this.#unread.subarray(0, size);
      this.#unread = this.#unread.subarray(size);
      const name = must(NAME_OF_KIND.get(frame.readUInt8(4)), "our ends send frames that exist");
      yield { name, bytes: frame };
    }
  }

  /** What came of a frame that is not whole yet. */
  get rest(): Buffer {
    return this.#unread;
  }
}
