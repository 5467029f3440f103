import type { Readable } from "node:stream";
import { Deadline, within } from "../../../base/clock.ts";

/** What an error shows of it. */
const TAIL_CHARACTERS = 1_500;

/** Everything that was written on a serial port, byte for byte, and whoever waits for more. */
export class Transcript {
  #text = "";
  #hasEnded = false;
  #changed = Promise.withResolvers<void>();

  constructor(port: Readable) {
    port.setEncoding("latin1").on("data", (text: string) => {
      this.#text += text;
      this.#wake();
    });
    port.once("close", () => {
      this.#hasEnded = true;
      this.#wake();
    });
  }

  get text(): string {
    return this.#text;
  }

  /** Resolves when `isMet` says so of the text. */
  async waitFor(what: string, limitMs: number, isMet: (text: string) => boolean): Promise<void> {
    const deadline = new Deadline(limitMs);
    const because = (why: string) => new Error(`Cannot wait for ${what}: ${why}; ${this.#tail}`);
    while (!isMet(this.#text)) {
      if (this.#hasEnded) throw because("QEMU has ended");
      await within(deadline.leftMs, this.#changed.promise, () =>
        because(`${limitMs} ms have gone by`),
      );
    }
  }

  get #tail(): string {
    return `the last that was written is\n${this.#text.slice(-TAIL_CHARACTERS)}`;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}
