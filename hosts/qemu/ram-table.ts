import { MigrationError } from "../../base/errors.ts";
import { parseSize } from "../../base/units.ts";
import { ask } from "./answer.ts";
import type { Qmp } from "./qmp.ts";

/** A block of memory as QEMU has it: RAM, ROMs, video memory. */
export interface RamRow {
  readonly name: string;
  /** Of the file or memory that it lies in, not of the guest. */
  readonly pageBytes: number;
}

/** A name, which may have spaces, its page, its offset. The first line is a heading. */
const ROW = /^\s*(\S.*?)\s+(\d+ (?:[KMG]i)?B)\s+0x/;

/** All blocks of a QEMU. Only a table for people tells of them: empty where there is none. */
export async function ramTableOf(qmp: Qmp): Promise<readonly RamRow[]> {
  try {
    return parseRamTable((await ask(qmp, "x-query-ramblock")).text("human-readable-text"));
  } catch (error) {
    if (error instanceof MigrationError && error.code === "HYPERVISOR_REFUSED") return [];
    throw error;
  }
}

function parseRamTable(text: string): RamRow[] {
  return text.split("\n").flatMap((line) => {
    const [, name, page] = ROW.exec(line) ?? [];
    return name === undefined || page === undefined ? [] : [{ name, pageBytes: parseSize(page) }];
  });
}
