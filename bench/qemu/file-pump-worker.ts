import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { readSome, writeAll } from "../../channels/descriptor.ts";
import { type PumpThread, takePart } from "../pump-thread.ts";

/** One thread of a pump from file to file: it reads and sends, or receives and writes. */
export interface FilePumpTask extends PumpThread {
  readonly direction: "in" | "out";
  readonly path: string;
  /** Of each piece, where it begins and how long it is. */
  readonly pieces: Float64Array;
  /** Of the longest one. */
  readonly pieceBytes: number;
}

const task = workerData as FilePumpTask;
const { direction, pieces } = task;
const buffer = new Uint8Array(task.pieceBytes);
const file = openSync(task.path, direction === "out" ? "r" : "r+");

takePart(task, (options) => {
  for (let index = 0; index < pieces.length; index += 2) {
    const at = pieces[index] as number;
    const piece = buffer.subarray(0, pieces[index + 1]);
    if (direction === "out") {
      readSync(file, piece, 0, piece.length, at);
      writeAll(options, piece);
    } else {
      readSome(options, piece, { least: piece.length, isIdle: false });
      writeSync(file, piece, 0, piece.length, at);
    }
  }
  if (direction === "out") readSome(options, buffer, { least: 1, isIdle: false });
  else writeAll(options, buffer.subarray(0, 1));
});
closeSync(file);
