import { expect } from "vitest";

/** When a line of the trace that begins so was told first. */
export function timeOf(trace: readonly string[], what: string): number {
  const line = trace.find((each) => each.slice(each.indexOf(" ") + 1).startsWith(what));
  expect(line, `"${what}" happens in\n${trace.join("\n")}`).toBeDefined();
  return Number(line?.split(" ")[0]);
}
