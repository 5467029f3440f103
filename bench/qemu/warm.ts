import { closeSync, openSync, rmSync, writeSync } from "node:fs";
import { MIB } from "../../base/units.ts";

const PIECE_BYTES = 2 * MIB;

/**
 * Has the kernel take as much memory of this kind as will arrive and let it go again. Where this
 * machine is itself a guest, what it has not used for a while must first be found by its host,
 * which takes longer than everything that is compared.
 */
export function warm(path: string, bytes: number): void {
  const piece = new Uint8Array(PIECE_BYTES);
  const fd = openSync(path, "wx");
  try {
    for (let at = 0; at < bytes; at += piece.length) writeSync(fd, piece, 0, piece.length, at);
  } finally {
    closeSync(fd);
    rmSync(path);
  }
}
