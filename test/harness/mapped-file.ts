import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { assert } from "../../base/assert.ts";
import type { Block } from "../../engine/block.ts";

const TMPFS = 0x0102_1994;
const MEMORY_FOLDER = "/dev/shm";
const PAGE_BYTES = 4096;

/** Why there is no file in memory to map here, or null. */
export function missingForMaps(): string | null {
  if (!existsSync(MEMORY_FOLDER)) return `${MEMORY_FOLDER} is missing`;
  return statfsSync(MEMORY_FOLDER).type === TMPFS ? null : `${MEMORY_FOLDER} is not in memory`;
}

/**
 * A guest's RAM that a real process maps shared: this one, for SQLite reads databases that way and
 * writes them by system calls. The file is a database and a long hole behind it. What is read of
 * the database is mapped, the rest of it is held by the file although nobody maps it, and the hole
 * is neither.
 */
export class MappedFile {
  readonly block: Block;
  readonly path: string;
  /** Pages of the database, none of them zero. */
  readonly contentPages: number;
  readonly #folder = mkdtempSync(join(MEMORY_FOLDER, "multifd-mapped-"));
  readonly #database: DatabaseSync;

  constructor({ pages, rows }: { pages: number; rows: number }) {
    this.path = join(this.#folder, "ram");
    const database = new DatabaseSync(this.path);
    database.exec("PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;");
    database.exec("CREATE TABLE content (id INTEGER PRIMARY KEY, bytes BLOB)");
    const insert = database.prepare("INSERT INTO content (bytes) VALUES (randomblob(3500))");
    for (let row = 0; row < rows; row += 1) insert.run();
    database.close();
    this.contentPages = statSync(this.path).size / PAGE_BYTES;
    assert(this.contentPages < pages, "there is a hole behind the database");
    this.setSize(pages * PAGE_BYTES);
    const place = { kind: "file", path: this.path, offset: 0 } as const;
    this.block = { name: "ram", sizeBytes: pages * PAGE_BYTES, pageBytes: PAGE_BYTES, place };
    this.#database = new DatabaseSync(this.path, { readOnly: true });
    this.#database.exec(`PRAGMA mmap_size = ${pages * PAGE_BYTES}`);
  }

  /** Reads so many rows, about a page each, through the mapping. */
  readRows(rows: number): void {
    this.#database.prepare("SELECT max(length(bytes)) FROM content WHERE id <= ?").all(rows);
    assert(readFileSync("/proc/self/maps", "utf8").includes(this.path), "SQLite maps the file");
  }

  /** Writes by a system call: the page is held then, and nobody maps it for that. */
  writePage(page: number, bytes: Uint8Array): void {
    this.#change((fd) => writeSync(fd, bytes, 0, bytes.length, page * PAGE_BYTES));
  }

  /** Drops what is behind `sizeBytes`, or adds a hole. */
  setSize(sizeBytes: number): void {
    this.#change((fd) => ftruncateSync(fd, sizeBytes));
  }

  read(): Buffer {
    return readFileSync(this.path);
  }

  #change(work: (fd: number) => void): void {
    const fd = openSync(this.path, "r+");
    work(fd);
    closeSync(fd);
  }

  [Symbol.dispose](): void {
    this.#database.close();
    rmSync(this.#folder, { recursive: true });
  }
}
