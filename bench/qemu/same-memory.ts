import { closeSync, openSync, readSync } from "node:fs";
import { MIB } from "../../base/units.ts";

const PIECE_BYTES = 4 * MIB;

/** Throws unless both files hold the same bytes, all of them. */
export function expectSameMemory(onePath: string, otherPath: string): void {
  const [one, other] = [openSync(onePath, "r"), openSync(otherPath, "r")];
  const pieces = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)] as const;
  try {
    for (let at = 0; ; at += PIECE_BYTES) {
      const bytes = readSync(one, pieces[0], 0, PIECE_BYTES, at);
      const found = readSync(other, pieces[1], 0, PIECE_BYTES, at);
      const isSame = pieces[0].subarray(0, bytes).equals(pieces[1].subarray(0, found));
      if (!isSame)
        throw new Error(`The memory that arrived differs in the ${PIECE_BYTES} from ${at}`);
      if (bytes === 0) return;
    }
  } finally {
    closeSync(one);
    closeSync(other);
  }
}
