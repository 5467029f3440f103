import { assert, must } from "../base/assert.ts";
import { popcount, wordCountFor } from "../workers/dirty-words.ts";
import { BASE_PAGE_BYTES } from "../workers/page-map.ts";
import type { ScanPart, ScanTables, SendTask } from "../workers/protocol.ts";
import type { Block, Geometry } from "./block.ts";
import type { ScanLog } from "./dirty-log.ts";
import { type FilePresence, heldPages, presenceOf } from "./presence.ts";

export type LookTask = Extract<SendTask, { kind: "look" }>;

/** A block that is scanned: what was sent of it, and what the kernel says of its use. */
export class ScannedBlock {
  readonly tables: ScanTables;
  readonly #block: Block;
  readonly #geometry: Geometry;
  readonly #pids: readonly number[];
  #presence: FilePresence | null = null;
  /** Pages of 4 KiB, as long as every look could count. */
  #mappedPages: number | null = null;

  /** Nothing was sent yet, and all pages must be marked: the tables are as if all were zero. */
  constructor(block: Block, geometry: Geometry, logs: readonly ScanLog[]) {
    const { pageCount } = geometry;
    this.#block = block;
    this.#geometry = geometry;
    this.#pids = [...new Set(logs.flatMap(({ presence }) => presence?.pids ?? []))];
    const words = (): Int32Array =>
      new Int32Array(new SharedArrayBuffer(wordCountFor(pageCount) * 4));
    this.tables = {
      hashes: new Int32Array(new SharedArrayBuffer(pageCount * 8)),
      content: words(),
      mapped: this.#pids.length === 0 ? null : words(),
    };
  }

  /** What every channel has to look at before a scan; null where the kernel tells nothing. */
  async looks(block: number, channels: number): Promise<LookTask[] | null> {
    this.#presence = this.#pids.length === 0 ? null : await presenceOf(this.#block, this.#pids);
    if (this.#presence === null) return null;
    const { file, regions } = this.#presence;
    const { length } = this.tables.content;
    const share = Math.ceil(length / channels);
    return Array.from({ length: channels }, (_, index) => {
      const firstWord = Math.min(length, index * share);
      const words = Math.min(share, length - firstWord);
      return { kind: "look", block, file, regions, firstWord, words };
    });
  }

  /** Takes what the looks found; see `SendTask`. */
  looked(results: readonly number[]): void {
    const isKnown = results.every((pages) => pages >= 0);
    this.#mappedPages = isKnown ? results.reduce((sum, pages) => sum + pages, 0) : null;
  }

  /**
   * After a scan of the likely pages: whether the file holds no others, so that those are zero, and
   * were sent as such. With the guest at rest this is a proof; see presence.ts.
   */
  async isRestEmpty(): Promise<boolean> {
    if (this.#presence === null || this.#mappedPages === null) return false;
    const held = await heldPages(this.#block, this.#presence.file);
    return held !== null && held <= this.#mappedPages + this.#unmappedContent();
  }

  /** Pages of a chunk that a scan of `part` reads, marked ones apart. */
  pagesOf(chunk: number, part: ScanPart): number {
    const { pagesPerChunk, pageCount } = this.#geometry;
    const first = chunk * pagesPerChunk;
    const pages = Math.min(pagesPerChunk, pageCount - first);
    assert(pages > 0, "a chunk lies in its block");
    if (part === "all") return pages;
    const { content } = this.tables;
    const mapped = must(this.tables.mapped, "a part of a chunk is told by what is mapped");
    let likely = 0;
    for (let word = first / 32; word * 32 < first + pages; word += 1) {
      likely += popcount((content[word] as number) | (mapped[word] as number));
    }
    return part === "likely" ? likely : pages - likely;
  }

  /**
   * Pages that nobody maps and that have content: of each of them the file holds some page of
   * 4 KiB at least.
   */
  #unmappedContent(): number {
    assert(this.#geometry.pageBytes >= BASE_PAGE_BYTES, "a page holds a page of 4 KiB at least");
    const { content, mapped } = this.tables;
    let pages = 0;
    for (let word = 0; word < content.length; word += 1) {
      pages += popcount((content[word] as number) & ~(mapped?.[word] ?? -1));
    }
    return pages;
  }
}
