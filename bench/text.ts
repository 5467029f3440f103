import { must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import { Prng } from "../test/prng.ts";

/** Then it may begin again: no window of a fast codec is so long. */
export const TEXT_BYTES = 32 * MIB;

const WORDS = 4096;
const MESSAGES = 1024;
const DRAWS = 2 ** 16;
const SYLLABLES =
  "a ba ce di do en er es fo ga hi in ka le lo ma na no on or pe ra re ri sa se so ta te ti to us";

/**
 * Text as of a log: lines that begin with a time, most words of which belong to a message that
 * comes again, and some of which do not. Words and messages are as frequent as their rank says
 * (Zipf's law). At level 1 zstd makes about a fourth of it.
 */
export function textOf({ bytes, seed }: { bytes: number; seed: number }): Uint8Array {
  const draw = drawing(seed);
  const syllables = SYLLABLES.split(" ");
  const words = rankingOf(WORDS, (rank) => {
    const parts = 1 + Math.floor(Math.log2(rank + 1) / 3);
    return `${many(parts, () => syllables[draw() % syllables.length])} `;
  });
  const word = (): string => words(draw());
  const messages = rankingOf(MESSAGES, () => many(4 + (draw() & 7), word));
  const target = new Uint8Array(bytes);
  const encoder = new TextEncoder();
  for (let at = 0, line = 1; at < bytes; line += 1) {
    const time = String(line * 37).padStart(10, "0");
    const head = `[${time.slice(0, 6)}.${time.slice(6)}] `;
    const text = `${head}${messages(draw())}${many(draw() & 7, word)}\n`;
    at += encoder.encodeInto(text, target.subarray(at)).written;
  }
  return target;
}

/** Gives 16 bits at a time. */
function drawing(seed: number): () => number {
  const random = new Prng(seed);
  const draws = new Uint16Array(4096);
  let used = draws.length;
  return () => {
    if (used === draws.length) {
      random.bytes(new Uint8Array(draws.buffer));
      used = 0;
    }
    used += 1;
    return draws[used - 1] as number;
  };
}

/** What a draw picks from a list: the first ones often and the last ones seldom. */
function rankingOf(length: number, make: (rank: number) => string): (draw: number) => string {
  const list = Array.from({ length }, (_, rank) => make(rank));
  return (draw) => must(list[Math.floor(length ** (draw / DRAWS)) - 1], "a rank is in the list");
}

function many(count: number, make: () => string | undefined): string {
  return Array.from({ length: count }, make).join("");
}
