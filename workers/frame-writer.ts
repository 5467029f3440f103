import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import type { Checksum } from "../channels/checksum.ts";
import { type DescriptorOptions, writeAll } from "../channels/descriptor.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  encodeHeader,
  type FrameName,
  HEADER_BYTES,
  nextSequence,
  writeChecksum,
} from "../channels/frame.ts";
import type { Control, CounterRow } from "./control.ts";
import { passGate } from "./gate.ts";
import { waitForPace } from "./pace.ts";
import type { Workbench } from "./workbench.ts";

const NOTHING = new Uint8Array(0);

/** What a write took, waiting for the pace and for the connection included. */
export interface WriteFigures {
  readonly elapsedMs: number;
  readonly waitedMs: number;
}

/** Writes the frames of one channel, each with one call as far as the system takes it, in pace. */
export class FrameWriter {
  readonly #bench: Workbench;
  readonly #output: DescriptorOptions;
  readonly #checksum: Checksum | null;
  readonly #control: Control;
  readonly #counters: CounterRow;
  readonly #yields: boolean;
  /** Of the next frame. */
  sequence: number;

  constructor(
    bench: Workbench,
    options: {
      output: DescriptorOptions;
      checksum: Checksum | null;
      control: Control;
      counters: CounterRow;
      sequence: number;
      /** A lane does not step aside for itself, and its pages are not paced. */
      isLane?: boolean;
    },
  ) {
    this.#bench = bench;
    this.#output = options.output;
    this.#checksum = options.checksum;
    this.#control = options.control;
    this.#counters = options.counters;
    this.#yields = options.isLane !== true;
    this.sequence = options.sequence;
  }

  /**
   * Sends a frame whose body lies in the workbench from `bodyAt` to `bodyEnd`: the header goes right
   * before it. What of the body lies elsewhere follows in `rest`, which nobody else may have sums of.
   */
  write(
    name: FrameName,
    bodyAt: number,
    bodyEnd: number,
    rest: Uint8Array = NOTHING,
  ): WriteFigures {
    const at = bodyAt - HEADER_BYTES;
    assert(at >= 0, "a head fits before the pages");
    assert(rest.length === 0 || this.#checksum === null, "a checksum is of bytes that stay");
    const { bytes, view } = this.#bench;
    const hasChecksum = this.#checksum !== null;
    const length = bodyEnd - bodyAt + rest.length;
    encodeHeader(view, at, { name, sequence: this.sequence, length, hasChecksum });
    if (this.#checksum !== null) {
      const header = bytes.subarray(at, at + CHECKSUMMED_HEADER_BYTES);
      writeChecksum(view, at, this.#checksum.ofPair(header, bytes.subarray(bodyAt, bodyEnd)));
    }
    this.sequence = nextSequence(this.sequence);
    return this.#send(bytes.subarray(at, bodyEnd), rest);
  }

  #send(frame: Uint8Array, rest: Uint8Array): WriteFigures {
    const { pacing } = this.#control;
    if (this.#yields) passGate(this.#control);
    const bytes = frame.length + rest.length;
    const startMs = nowMs();
    const pacedMs = this.#yields ? waitForPace(pacing, this.#output.stop, bytes) : 0;
    const waitedMs = pacedMs + writeAll(this.#output, frame, rest);
    const elapsedMs = nowMs() - startMs;
    this.#counters.add("movedBytes", bytes);
    this.#counters.add("sendMs", elapsedMs);
    this.#counters.add("waitMs", waitedMs);
    return { elapsedMs, waitedMs };
  }
}
