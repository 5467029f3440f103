import { FAILURES, type FailureCode } from "../base/errors.ts";
import { domainText } from "../engine/domain.ts";
import { FEATURES, LEGALITY, ruleText } from "../engine/legality.ts";
import { flagOf, PARAMETER_KEYS, rowOf } from "../engine/parameters.ts";
import { aligned } from "./layout.ts";
import { AS_FLAGS, formatValue } from "./values.ts";

/** How a table is wanted: for a manager, or for people in so many columns. */
export interface TableStyle {
  readonly json?: boolean;
  readonly columns?: number | undefined;
}

const UNITS = {
  count: null,
  bytes: "bytes",
  bytesPerSecond: "bytes per second",
  milliseconds: "milliseconds",
  percent: "percent",
  cores: "cores",
  boolean: null,
  choice: null,
} as const;

/** Every parameter with all that the table says, values in the unit of the key. */
export function parameterRows() {
  return PARAMETER_KEYS.map((key) => {
    const { flag: _derivedOrNot, type, ...row } = rowOf(key);
    return { name: key, flag: `--${flagOf(key)}`, type, unit: UNITS[type], ...row };
  });
}

/** Every rule as data, and in words under `rule`. */
export function legalityRows() {
  return LEGALITY.map((rule) => ({ ...rule, rule: ruleText(rule) }));
}

/** Every failure, with the names of its facts where the message will hold their values. */
export function failureRows() {
  return Object.entries(FAILURES).map(([code, { remedy, advice }]) => {
    const { facts, message } = messageTemplate(code as FailureCode);
    return { code, remedy, message, facts, advice };
  });
}

/** The text of `multifd parameters`. */
export function printParameters(style: TableStyle = {}): string {
  if (style.json) return asJson(parameterRows());
  const rows = PARAMETER_KEYS.map((key) => {
    const row = rowOf(key);
    const notes = [row.agreed ? "agreed" : "", row.live ? "live" : ""].filter(Boolean).join(", ");
    const takes = domainText(row, AS_FLAGS);
    const preset = formatValue(row, row.default);
    return [`--${flagOf(key)}`, preset, row.side, notes, `${row.meaning} Takes ${takes}.`];
  });
  const legend =
    "agreed: both ends must have the same value. live: may change while a migration runs.\n";
  return `${forPeople(["FLAG", "DEFAULT", "SIDE", "", "MEANING"], rows, style)}\n${legend}`;
}

/** The text of `multifd legality`. */
export function printLegality(style: TableStyle = {}): string {
  if (style.json) return asJson(legalityRows());
  const rows = LEGALITY.map((rule) => [
    rule.id,
    rule.kind,
    `${capitalised(ruleText(rule, AS_FLAGS))}. ${rule.reason}`,
  ]);
  const features = Object.entries(FEATURES).map(([name, meaning]) => `${name}: ${meaning}.\n`);
  return `${forPeople(["RULE", "KIND", "MEANING"], rows, style)}\n${features.join("")}`;
}

/** The text of `multifd failures`. */
export function printFailures(style: TableStyle = {}): string {
  if (style.json) return asJson(failureRows());
  const rows = failureRows().map(({ code, remedy, message, advice }) => [
    code,
    remedy,
    `${message}. ${advice}`,
  ]);
  return forPeople(["CODE", "REMEDY", "MESSAGE AND ADVICE"], rows, style);
}

function forPeople(head: string[], rows: string[][], { columns }: TableStyle): string {
  return aligned([head, ...rows], columns === undefined ? {} : { columns });
}

function asJson(rows: readonly object[]): string {
  return `${JSON.stringify(rows, null, 2)}\n`;
}

function capitalised(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

/**
 * A message with `{name}` in the place of each fact, and the names in order. Every fact is a list
 * of one text: it reads the same whether the message joins it or prints it.
 */
function messageTemplate(code: FailureCode): { message: string; facts: string[] } {
  const names = new Set<string>();
  const facts = new Proxy(
    {},
    {
      get(_target, name) {
        names.add(String(name));
        return [`{${String(name)}}`];
      },
    },
  );
  const message = FAILURES[code].says(facts as never);
  return { message, facts: [...names] };
}
