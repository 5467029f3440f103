import { type DescriptorOptions, readNow } from "./descriptor.ts";

/** Where the bytes of a descriptor come to that is looked at over and over, and never waited for. */
export interface Inbox {
  readonly bytes: Uint8Array;
  /** Of the same bytes. */
  readonly view: DataView;
  /** A look that finds nothing costs next to nothing: it throws nothing and allocates nothing. */
  readonly isQuiet: boolean;
  /** Reads what is there now to `at` and on, not past `end`. 0 when nothing is. Throws CHANNEL_LOST. */
  readonly read: (at: number, end: number) => number;
}

/** WASI preview 1: the vector of buffers to read into, and where to tell how many bytes came. */
type FdRead = (fd: number, vectorAt: number, buffers: number, countAt: number) => number;

const STANDARD_INPUT = 0;
const SUCCESS = 0;
const AGAIN = 6;

/** A vector of one buffer, its address and its length; a count; then the buffer itself. */
const VECTOR_AT = 0;
const COUNT_AT = 8;
const BYTES_AT = 16;
const WASM_PAGE_BYTES = 65_536;

/**
 * An inbox for so many bytes.
 *
 * `fs.readSync` throws where nothing is there: 3 us of a processor, several times that before its
 * callers are compiled, and garbage, while a lane looks dozens of times for each page that a guest
 * waits for. WASI has the same read of any descriptor that it is given as its standard input, and
 * answers with a number, in a fifth of the time (`npm run bench -- looks`). No program runs in it:
 * its memory is where the bytes come to, and it closes nothing. It is experimental in Node, and a host
 * may forbid it; then the looks are those that throw.
 */
export function openInbox(options: DescriptorOptions, length: number): Inbox {
  const initial = Math.ceil((BYTES_AT + length) / WASM_PAGE_BYTES);
  const memory = new WebAssembly.Memory({ initial });
  const bytes = new Uint8Array(memory.buffer, BYTES_AT, length);
  const view = new DataView(memory.buffer, BYTES_AT, length);
  const readAloud = (at: number, end: number) => readNow(options, bytes.subarray(at, end));
  const fdRead = fdReadOf(options.fd, memory);
  if (fdRead === null) return { bytes, view, isQuiet: false, read: readAloud };
  const words = new DataView(memory.buffer);
  return {
    bytes,
    view,
    isQuiet: true,
    read(at, end) {
      words.setUint32(VECTOR_AT, BYTES_AT + at, true);
      words.setUint32(VECTOR_AT + 4, end - at, true);
      const status = fdRead(STANDARD_INPUT, VECTOR_AT, 1, COUNT_AT);
      if (status === AGAIN) return 0;
      const count = status === SUCCESS ? words.getUint32(COUNT_AT, true) : 0;
      // Whatever else it is, the end included: the other read has words for it.
      return count > 0 ? count : readAloud(at, end);
    },
  };
}

function fdReadOf(fd: number, memory: WebAssembly.Memory): FdRead | null {
  try {
    const { WASI } = silently(() => process.getBuiltinModule("node:wasi"));
    const wasi = new WASI({ version: "preview1", stdin: fd, stdout: fd, stderr: fd });
    wasi.finalizeBindings({ exports: { memory } });
    return wasi.wasiImport["fd_read"] as FdRead;
  } catch {
    return null;
  }
}

/** Without the warning that something is experimental, which is ours to know and nobody else's. */
function silently<T>(load: () => T): T {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return load();
  } finally {
    process.emitWarning = emitWarning;
  }
}
