/** What a guest has said on its serial port, at one QEMU or at several one after the other. */
export interface Said {
  readonly isReady: boolean;
  /** The numbers in the order in which they came. */
  readonly beats: readonly number[];
  readonly sweeps: readonly number[];
  /** Complaints of the guest about its memory. */
  readonly broken: readonly string[];
  /** Lines that it never says when all is well: torn ones, or words of its kernel. */
  readonly strange: readonly string[];
}

/** Reads whole lines; one that has only begun counts when the rest of it is there. */
export function readSaid(text: string): Said {
  const lines = text.replaceAll("\r", "").split("\n").slice(0, -1);
  const numbers = (word: string) =>
    lines.flatMap((line) => {
      const found = new RegExp(`^${word} (\\d+)$`).exec(line);
      return found === null ? [] : [Number(found[1])];
    });
  return {
    isReady: lines.includes("ready"),
    beats: numbers("beat"),
    sweeps: numbers("sweep"),
    broken: lines.filter((line) => line.includes("BROKEN")),
    strange: lines.filter((line) => !/^(?:ready|(?:beat|sweep) \d+|.*BROKEN.*)$/.test(line)),
  };
}

/**
 * All that is wrong with a guest that moved from QEMU to QEMU, whose serial ports said this, in the
 * order of the moves. A guest that stops does so between two bytes, and the next QEMU sends the
 * byte after: joined, the texts are what a guest that never moved would have said. So no beat may
 * be missing, come twice or be torn. Before it is ready a guest may boot as it likes.
 */
export function problemsOf(texts: readonly string[]): string[] {
  const text = texts.join("");
  const { isReady, beats, sweeps, broken, strange } = readSaid(afterBoot(text));
  return [
    ...(isReady ? [] : ["it was never ready"]),
    ...jumpsIn("beat", beats),
    ...jumpsIn("sweep", sweeps),
    ...broken,
    ...strange.map((line) => `it said "${line}"`),
  ];
}

function afterBoot(text: string): string {
  const start = /^ready\r?$/m.exec(text);
  return start === null ? "" : text.slice(start.index);
}

function jumpsIn(what: string, numbers: readonly number[]): string[] {
  return numbers
    .flatMap((number, index) =>
      number === index + 1 ? [] : [`${what} ${number} came where ${index + 1} belongs`],
    )
    .slice(0, 1);
}
