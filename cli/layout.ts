/** Text for people is this wide unless the terminal is narrower. */
export const COLUMNS_MAX = 100;

/** Below this a column of prose is a column of words; lines run over instead. */
const PROSE_COLUMNS_MIN = 30;

const GAP = "  ";

/**
 * Rows of cells under each other. All columns but the last are as wide as their widest cell; the
 * last is wrapped into what is left of `columns`. No line ends in spaces.
 */
export function aligned(
  rows: readonly (readonly string[])[],
  { columns = COLUMNS_MAX, indent = "" }: { columns?: number; indent?: string } = {},
): string {
  const last = Math.max(...rows.map((row) => row.length)) - 1;
  const widths = Array.from({ length: last }, (_, column) =>
    Math.max(...rows.map((row) => row[column]?.length ?? 0)),
  );
  const taken = widths.reduce((sum, width) => sum + width + GAP.length, indent.length);
  const left = Math.max(PROSE_COLUMNS_MIN, columns - taken);
  return rows.map((row) => lines(row, widths, left, indent)).join("");
}

function lines(row: readonly string[], widths: readonly number[], left: number, indent: string) {
  const head = widths.map((width, column) => (row[column] ?? "").padEnd(width) + GAP).join("");
  const [first = "", ...rest] = wrapped(row[widths.length] ?? "", left);
  const hang = " ".repeat(head.length);
  return [head + first, ...rest.map((line) => hang + line)]
    .map((line) => `${indent}${line}`.trimEnd())
    .map((line) => `${line}\n`)
    .join("");
}

/** `text` in lines of at most `columns`, broken at spaces; a longer word has a line of its own. */
export function wrapped(text: string, columns: number): string[] {
  const filled: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > columns) {
      filled.push(line);
      line = word;
    } else {
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  return [...filled, line];
}
