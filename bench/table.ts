import { isMet, type Result } from "./measure.ts";

const NAME_WIDTH = 46;

/** A result as a line for people. */
export function formatResult(result: Result): string {
  const { name, value, unit, goal, detail } = result;
  const met = isMet(result);
  const wanted =
    goal === undefined
      ? ""
      : "atLeast" in goal
        ? `>= ${formatValue(goal.atLeast)}`
        : `<= ${formatValue(goal.atMost)}`;
  const columns = [
    `  ${name}`.padEnd(NAME_WIDTH),
    formatValue(value).padStart(9),
    unit.padEnd(6),
    wanted.padEnd(9),
    met === null ? "    " : met ? "met " : "MISS",
    detail === undefined ? "" : ` ${detail}`,
  ];
  return columns.join(" ").trimEnd();
}

function formatValue(value: number): string {
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}
