import { resolve } from "node:path";

/**
 * Files of guest memory that a thread of a failed attempt may still write: it hangs in the kernel, on
 * a disk that does not answer, and what it was about to write comes when the disk lets it. In the
 * memory of another guest that would be damage that nobody sees.
 */
const HELD = new Map<string, number>();

/** Returns what lets go of them, once the thread has ended. */
export function holdFiles(paths: readonly string[]): () => void {
  const held = paths.map((path) => resolve(path));
  for (const path of held) HELD.set(path, (HELD.get(path) ?? 0) + 1);
  return () => {
    for (const path of held.splice(0)) {
      const left = (HELD.get(path) ?? 1) - 1;
      if (left > 0) HELD.set(path, left);
      else HELD.delete(path);
    }
  };
}

export function isHeld(path: string): boolean {
  return HELD.has(resolve(path));
}
