import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { must } from "../../base/assert.ts";
import { type DescriptorOptions, readSome, writeAll } from "../../channels/descriptor.ts";
import type { Codec } from "../../workers/codecs/codec.ts";
import { letGo } from "../../workers/codecs/let-go.ts";
import { codecOf } from "../../workers/codecs/list.ts";
import { type PumpThread, takePart } from "../pump-thread.ts";

/** One thread of a pump from file to file: it reads and sends, or receives and writes. */
export interface FilePumpTask extends PumpThread {
  readonly direction: "in" | "out";
  readonly path: string;
  /** Of each piece, where it begins, how long it is, and whether it is sent: 1, or 0 if it is only read. */
  readonly pieces: Float64Array;
  /** Of the longest one. */
  readonly pieceBytes: number;
  /** What each piece is compressed by; 0 where it goes as it is. */
  readonly codec: number;
  readonly level: number;
}

const task = workerData as FilePumpTask;
const { direction, pieces, level } = task;
const codec = task.codec === 0 ? null : must(codecOf(task.codec), "a codec is in the list");
const buffer = new Uint8Array(task.pieceBytes);
const file = openSync(task.path, direction === "out" ? "r" : "r+");

takePart(task, (options) => {
  for (let index = 0; index < pieces.length; index += 3) {
    const at = pieces[index] as number;
    const piece = buffer.subarray(0, pieces[index + 1]);
    const isSent = pieces[index + 2] === 1;
    if (direction === "out") readSync(file, piece, 0, piece.length, at);
    if (!isSent) continue;
    if (direction === "out") {
      if (codec === null) writeAll(options, piece);
      else sendCompressed(options, piece, codec);
    } else if (codec === null) {
      readSome(options, piece, { least: piece.length, isIdle: false });
      writeSync(file, piece, 0, piece.length, at);
    } else receiveCompressed(options, piece, { codec, at });
  }
  if (direction === "out") readSome(options, buffer, { least: 1, isIdle: false });
  else writeAll(options, buffer.subarray(0, 1));
});
closeSync(file);

/** Behind its length; what does not shrink goes as it is. */
function sendCompressed(options: DescriptorOptions, piece: Uint8Array, codec: Codec): void {
  const made = codec.compress(piece, level);
  const sent = made.length < piece.length ? made : piece;
  writeAll(options, new Uint8Array(Uint32Array.of(sent.length).buffer), sent);
  letGo(made);
}

function receiveCompressed(
  options: DescriptorOptions,
  piece: Uint8Array,
  { codec, at }: { codec: Codec; at: number },
): void {
  const length = new Uint32Array(1);
  readSome(options, new Uint8Array(length.buffer), { least: 4, isIdle: false });
  const came = piece.subarray(0, length[0]);
  readSome(options, came, { least: came.length, isIdle: false });
  const isRaw = came.length === piece.length;
  const bytes = isRaw ? piece : must(codec.expand(came, piece.length), "it expands to a piece");
  writeSync(file, bytes, 0, bytes.length, at);
  if (!isRaw) letGo(bytes);
}
