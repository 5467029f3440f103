import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { reasonOf } from "../../../base/errors.ts";

/** How many pages of the usual huge size the kernel keeps for those who ask for them. */
const COUNT_FILE = "/proc/sys/vm/nr_hugepages";

/** A folder whose files are in huge pages. `using` gives the pages back. */
export class HugePages implements Disposable {
  readonly folder: string;
  readonly #countBefore: number;

  private constructor(folder: string, countBefore: number) {
    this.folder = folder;
    this.#countBefore = countBefore;
  }

  /** So many more of them. Throws where they cannot be had. */
  static reserve(count: number): HugePages {
    const before = countNow();
    const folder = mkdtempSync(join(tmpdir(), "multifd-huge-"));
    const pages = new HugePages(folder, before);
    try {
      writeFileSync(COUNT_FILE, `${before + count}`);
      const had = countNow() - before;
      if (had < count) throw new Error(`the kernel has ${had} huge pages of ${count}`);
      execFileSync("mount", ["-t", "hugetlbfs", "hugetlbfs", folder]);
      return pages;
    } catch (error) {
      pages[Symbol.dispose]();
      throw error;
    }
  }

  /** What is in the way of so many of them, in a sentence. Empty: they can be had. */
  static missing(count: number): string[] {
    try {
      HugePages.reserve(count)[Symbol.dispose]();
      return [];
    } catch (error) {
      return [`${count} huge pages and the right to mount them (${reasonOf(error)})`];
    }
  }

  [Symbol.dispose](): void {
    try {
      if (isMounted(this.folder)) execFileSync("umount", [this.folder]);
      rmSync(this.folder, { recursive: true, force: true });
    } finally {
      if (countNow() !== this.#countBefore) writeFileSync(COUNT_FILE, `${this.#countBefore}`);
    }
  }
}

function countNow(): number {
  return Number(readFileSync(COUNT_FILE, "utf8"));
}

function isMounted(folder: string): boolean {
  return readFileSync("/proc/self/mounts", "utf8").includes(` ${folder} hugetlbfs `);
}
