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
 * Nothing is looked at, counted, described or agreed on, and zero pages are known beforehand.
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

/** What of the file is not zero, in pieces, piece by piece shared among the channels. */
function sharesOf(path: string, channels: number): Float64Array[] {
  const shares = Array.from({ length: channels }, () => [] as number[]);
  let pieces = 0;
  const page = new Uint8Array(PAGE_BYTES);
  const zeros = new Uint8Array(PAGE_BYTES);
  const end = { from: 0, to: 0 };
  const close = (): void => {
    if (end.to > end.from) shares[pieces++ % channels]?.push(end.from, end.to - end.from);
  };
  const fd = openSync(path, "r");
  for (let at = 0; readSync(fd, page, 0, PAGE_BYTES, at) === PAGE_BYTES; at += PAGE_BYTES) {
    const goesOn = end.to === at && at - end.from < PIECE_BYTES;
    if (sameBytes(page, zeros)) continue;
    if (!goesOn) {
      close();
      end.from = at;
    }
    end.to = at + PAGE_BYTES;
  }
  close();
  closeSync(fd);
  return shares.map((share) => Float64Array.from(share));
}
