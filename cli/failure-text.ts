import type { MigrationError } from "../base/errors.ts";

/** What failed, in full, and what to do about it. Several problems have a line each. */
export function failureText(failure: MigrationError): string {
  const { code, message, advice, at, leftover } = failure;
  const where = at === undefined || code === "CONFIGURATION_INVALID" ? "" : ` (at the ${at})`;
  return printable(
    `${code}${where}: ${inLines(failure, message)}\n${advice}\n${leftover === undefined ? "" : `${leftover}\n`}`,
  );
}

/** Names and reasons may come from the other host: what would steer a terminal is shown as "?". */
export function printable(text: string): string {
  return text.replaceAll(/(?!\n)\p{Cc}/gu, "?");
}

function inLines({ facts }: MigrationError, message: string): string {
  const problems = "problems" in facts && Array.isArray(facts.problems) ? facts.problems : [];
  const list = problems.join("; ");
  if (problems.length < 2 || !message.endsWith(list)) return message;
  const lines = problems.map((problem) => `\n  ${problem}`);
  return `${message.slice(0, -list.length).trimEnd()}${lines.join("")}`;
}
