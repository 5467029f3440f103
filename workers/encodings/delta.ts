import { PIECE_BYTES, UNIT_BYTES } from "../workbench.ts";
import type { PageEncoding } from "./encoding.ts";

/** Per page, the generation that its delta is based on. */
const GENERATION_BYTES = 4;
/** Per unit of 4 KiB, the length of its delta; 0 is "unchanged". */
const LENGTH_BYTES = 2;

export const delta: PageEncoding = {
  number: 3,
  name: "delta",
  meaning:
    "u32 generation per page, u16 length per 4 KiB unit, then each unit's difference from the version of that generation, as QEMU's xbzrle has it.",
  counter: "delta",
  isPayload(bytes, { pages, pageBytes }) {
    const bytesMax = pages * (pageBytes + GENERATION_BYTES);
    const isPiece = pages * pageBytes <= PIECE_BYTES;
    return isPiece && bytes >= headBytes(pages, pageBytes) && bytes <= bytesMax;
  },
  decode(payload, run, target) {
    const { pageBytes } = target;
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const units = (run.pages * pageBytes) / UNIT_BYTES;
    const lengthsAt = run.pages * GENERATION_BYTES;
    target.applyDeltas(run, {
      generation: (page) => view.getUint32(page * GENERATION_BYTES, true),
      length: (unit) => view.getUint16(lengthsAt + unit * LENGTH_BYTES, true),
      units,
      deltas: payload.subarray(headBytes(run.pages, pageBytes)),
    });
  },
};

function headBytes(pages: number, pageBytes: number): number {
  return pages * (GENERATION_BYTES + (pageBytes / UNIT_BYTES) * LENGTH_BYTES);
}
