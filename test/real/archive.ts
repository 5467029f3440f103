/** One entry of a cpio archive. */
export interface ArchiveEntry {
  readonly path: string;
  /** Type and permission bits as `stat` gives them. */
  readonly mode: number;
  readonly bytes?: Uint8Array;
  /** Of a device node: its major and minor number. */
  readonly device?: readonly [major: number, minor: number];
}

export const FOLDER_MODE = 0o040755;
export const PROGRAM_MODE = 0o100755;
export const CHARACTER_DEVICE_MODE = 0o020600;

/** Names, bodies and headers all begin at multiples of this. */
const ALIGNMENT_BYTES = 4;

/**
 * Writes the "newc" format of cpio, the one that Linux unpacks as its first file system. Written
 * here because the cpio program makes device nodes only for root, and because the same entries
 * must give the same bytes. Layout: the kernel's Documentation/driver-api/early-userspace.
 */
export function writeArchive(entries: readonly ArchiveEntry[]): Uint8Array {
  const trailer: ArchiveEntry = { path: "TRAILER!!!", mode: 0 };
  return Buffer.concat([...entries, trailer].flatMap((entry, index) => piecesOf(entry, index + 1)));
}

function piecesOf(entry: ArchiveEntry, inode: number): Uint8Array[] {
  const body = entry.bytes ?? new Uint8Array(0);
  const [major, minor] = entry.device ?? [0, 0];
  const name = `${entry.path}\0`;
  const nameBytes = Buffer.byteLength(name);
  // inode, mode, user, group, links, time, length, device of the archive, of the node, name, sum
  const fields = [inode, entry.mode, 0, 0, 1, 0, body.length, 0, 0, major, minor, nameBytes, 0];
  const digits = fields.map((field) => field.toString(16).padStart(8, "0"));
  return [padded(Buffer.from(`070701${digits.join("")}${name}`)), padded(body)];
}

function padded(bytes: Uint8Array): Uint8Array {
  const length = Math.ceil(bytes.length / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
  const result = new Uint8Array(length);
  result.set(bytes);
  return result;
}
