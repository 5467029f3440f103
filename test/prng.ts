import { assert } from "../base/assert.ts";

/**
 * Pseudo-random numbers that the same seed repeats on every machine (sfc32: 128 bits of state,
 * far better than the tests can tell). Not for secrets.
 */
export class Prng {
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  /** Any integer from 0 to 2^32 - 1; neighbouring seeds give unrelated sequences. */
  constructor(seed: number) {
    assert(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32, "a seed is a 32-bit integer");
    this.#a = seed | 0;
    this.#b = 0x9e37_79b9 | 0;
    this.#c = 0x243f_6a88;
    // The first words still show how close two seeds are; after twelve steps nothing does.
    for (let step = 0; step < 12; step += 1) this.#word();
  }

  /** An integer from 0 to `n` - 1, where `n` is at most 2^53 - 1. */
  below(n: number): number {
    assert(Number.isSafeInteger(n) && n > 0, "a range of random integers is not empty");
    const high = this.#word() >>> 5;
    const low = this.#word() >>> 6;
    return Math.floor(((high * 2 ** 26 + low) / 2 ** 53) * n);
  }

  /** Fills `target`, which may be empty and may be shared. */
  bytes(target: Uint8Array): void {
    for (let at = 0; at < target.length; at += 4) {
      const word = this.#word();
      target[at] = word;
      // A typed array ignores what is written past its end.
      target[at + 1] = word >>> 8;
      target[at + 2] = word >>> 16;
      target[at + 3] = word >>> 24;
    }
  }

  /** The next 32 bits, as a signed integer. */
  #word(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0;
    return sum;
  }
}

/**
 * The seed of this run: `SEED` where it is set, to replay a failure, else a fresh one. Put it in
 * the test's name, so that whoever sees the test fail can replay it.
 */
export function seedFromEnvironment(): number {
  const text = process.env["SEED"];
  if (text === undefined || text === "") return Math.floor(Math.random() * 2 ** 32);
  const seed = Number(text);
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw new RangeError(`Cannot use SEED "${text}": it must be an integer from 0 to 4294967295`);
  }
  return seed;
}
