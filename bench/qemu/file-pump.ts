import { closeSync, openSync, readSync, truncateSync, writeFileSync } from "node:fs";
import { sameBytes } from "../../base/same-bytes.ts";
import { KIB } from "../../base/units.ts";
import { parseAddress } from "../../channels/address.ts";
import { type Connection, connector, listen } from "../../channels/connection.ts";
import { zstd } from "../../workers/codecs/zstd.ts";
import { type PumpFigures, runThreads } from "../pump.ts";
import type { FilePumpTask } from "./file-pump-worker.ts";
import type { Move } from "./sample.ts";

const LIMIT_MS = 10_000;
const PAGE_BYTES = 4 * KIB;
/** As of the engine's frames. */
const PIECE_BYTES = 512 * KIB;

/** What a piece is compressed by: as the engine does, and QEMU, unless told otherwise. */
const CODECS = { none: { codec: 0, level: 0 }, zstd: { codec: zstd.number, level: 1 } } as const;

/**
 * What is left of a migration by this engine when nothing is done that could be left out: as many
 * threads and connections move the same bytes from the same file into a fresh one, by the same calls.
 * Nothing is looked at, counted, described or agreed on. Zero pages are known beforehand, but read, for
 * nobody else could know of them without.
 */
export async function pumpFile(
  {
    sourcePath,
    destinationPath,
    sizeBytes,
    channels,
    compression,
  }: Omit<Move, "compression"> & { compression: keyof typeof CODECS },
  isReady: () => void,
): Promise<PumpFigures> {
  const shares = sharesOf(sourcePath, channels);
  writeFileSync(destinationPath, "");
  truncateSync(destinationPath, sizeBytes);
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  const dialer = connector(parseAddress(listener.address));
  const near: Connection[] = [];
  const far: Connection[] = [];
  for (let channel = 1; channel <= channels; channel += 1) {
    near.push(await dialer.connect(channel, LIMIT_MS));
    far.push(await listener.next(LIMIT_MS));
  }
  listener.close();
  isReady();
  const url = new URL("./file-pump-worker.ts", import.meta.url);
  // Those of both ends begin together: nobody's clock counts how long the others take to start.
  return await runThreads<FilePumpTask>(url, [...near, ...far], (common, index) => {
    const pieces = shares[index % channels] ?? new Float64Array();
    const end =
      index < channels
        ? ({ direction: "out", path: sourcePath } as const)
        : ({ direction: "in", path: destinationPath } as const);
    return { ...common, ...end, pieces, pieceBytes: PIECE_BYTES, ...CODECS[compression] };
  });
}

/**
 * The file in pieces that are zero throughout or nowhere, by pages; those of either kind are shared among
 * the channels piece by piece. See `FilePumpTask`.
 */
function sharesOf(path: string, channels: number): Float64Array[] {
  const shares = Array.from({ length: channels }, () => [] as number[]);
  const counts = { content: 0, zero: 0 };
  const page = new Uint8Array(PAGE_BYTES);
  const zeros = new Uint8Array(PAGE_BYTES);
  const piece = { from: 0, to: 0, isZero: false };
  const close = (): void => {
    const { from, to, isZero } = piece;
    if (to === from) return;
    const share = counts[isZero ? "zero" : "content"]++ % channels;
    shares[share]?.push(from, to - from, isZero ? 0 : 1);
  };
  const fd = openSync(path, "r");
  for (let at = 0; readSync(fd, page, 0, PAGE_BYTES, at) === PAGE_BYTES; at += PAGE_BYTES) {
    const isZero = sameBytes(page, zeros);
    if (isZero !== piece.isZero || at - piece.from === PIECE_BYTES) {
      close();
      piece.from = at;
      piece.isZero = isZero;
    }
    piece.to = at + PAGE_BYTES;
  }
  close();
  closeSync(fd);
  return shares.map((share) => Float64Array.from(share));
}
