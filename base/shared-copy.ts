import { Buffer } from "node:buffer";
import { assert } from "./assert.ts";

/**
 * Copies `target.length` bytes of shared memory from `offset` on, which others may be writing: the
 * copy may be torn.
 *
 * `target.set(shared)` would do the same at half the speed (16 instead of 31 GB/s): V8 13.6 copies
 * shared memory word by word, because the language wants no word to be torn. Nobody here needs
 * that. `Buffer.copy` is a plain `memmove`, unless it copies whole arrays of bytes: then it is
 * `set` again. So the source is one byte longer than what is copied, at whichever end it can be.
 */
export function copyShared(target: Uint8Array, shared: SharedArrayBuffer, offset: number): void {
  const bytes = target.length;
  assert(offset >= 0 && offset + bytes <= shared.byteLength, "a copy lies inside its memory");
  if (bytes === shared.byteLength) {
    target.set(new Uint8Array(shared));
    return;
  }
  const before = offset > 0 ? 1 : 0;
  const source = Buffer.from(shared, offset - before, bytes + 1);
  const copied = source.copy(target, 0, before, before + bytes);
  assert(copied === bytes, "a copy is whole");
}
