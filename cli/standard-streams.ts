import { errnoOf, reasonOf } from "../base/errors.ts";

/**
 * Standard output and standard error as commands use them. A reader that leaves (`| head -1`) or a
 * disk that is full must not end a migration: from then on there is nobody to tell, that is all.
 */

let trouble: unknown = null;

for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error) => {
    trouble ??= error;
  });
}

/** Writes text that ends in a line feed, or a part of a terminal's line. */
export function say(text: string): void {
  write(process.stdout, text);
}

/** Tells what went wrong. */
export function complain(text: string): void {
  write(process.stderr, text);
}

/**
 * Returns when everything that was said is with the operating system: a pipe takes what its reader
 * makes room for, and a process that exits before loses the rest. Returns why some of it was lost,
 * or null; a reader that has left wants no more, and that is not a loss.
 */
export async function flushed(): Promise<string | null> {
  await Promise.all([process.stdout, process.stderr].map(drained));
  return trouble === null || errnoOf(trouble) === "EPIPE" ? null : reasonOf(trouble);
}

function write(stream: NodeJS.WriteStream, text: string): void {
  try {
    stream.write(text);
  } catch (error) {
    trouble ??= error; // A file is written at once, and throws.
  }
}

/** Also a write that has failed already tells so with the next one. */
async function drained(stream: NodeJS.WriteStream): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  stream.write("", () => resolve());
  await promise;
}
