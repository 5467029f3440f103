/** The known name that `name` was probably meant to be, or undefined when none comes close. */
export function nearest(name: string, known: Iterable<string>): string | undefined {
  const wanted = bare(name);
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(wanted.length / 3)) + 1;
  for (const candidate of known) {
    const other = bare(candidate);
    const isPart = wanted.length >= 4 && (other.includes(wanted) || wanted.includes(other));
    const distance = isPart ? 1 : editDistance(wanted, other);
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/** Case and dashes aside, so that "max-rounds" finds `maxRounds`. */
function bare(name: string): string {
  return name
    .toLowerCase()
    .replaceAll(/[^a-z0-9]/g, "")
    .slice(0, LENGTH_MAX);
}

/** Nothing we know is nearly as long; it bounds the work for a name that is an essay. */
const LENGTH_MAX = 64;

/** Levenshtein's: insertions, removals and replacements between two words. */
function editDistance(from: string, to: string): number {
  let above = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let row = 1; row <= from.length; row += 1) {
    const current = [row];
    for (let column = 1; column <= to.length; column += 1) {
      const replaced = (above[column - 1] ?? 0) + (from[row - 1] === to[column - 1] ? 0 : 1);
      const inserted = (current[column - 1] ?? 0) + 1;
      const removed = (above[column] ?? 0) + 1;
      current.push(Math.min(replaced, inserted, removed));
    }
    above = current;
  }
  return above[to.length] ?? 0;
}
