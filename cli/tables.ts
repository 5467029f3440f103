import { FAILURES, type FailureCode } from "../base/errors.ts";
import { domainText } from "../engine/domain.ts";
import { ruleText, subjectsOf } from "../engine/legality.ts";
import { flagOf, PARAMETER_KEYS, rowOf } from "../engine/parameters.ts";
import { aligned } from "./layout.ts";
import { ALL_FEATURES, FEATURE_FLAGS, RULES } from "./rules.ts";
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

/**
 * The matrix: every parameter and every feature with the rules that speak of it, and every rule as
 * data and in words under `rule`. What no rule speaks of goes with everything.
 */
export function legalityTable() {
  const rulesOf = (name: string) =>
    RULES.filter((rule) => (subjectsOf(rule) as Set<string>).has(name)).map(({ id }) => id);
  return {
    parameters: PARAMETER_KEYS.map((name) => {
      return { name, flag: `--${flagOf(name)}`, rules: rulesOf(name) };
    }),
    features: FEATURE_NAMES.map((name) => {
      return { name, ...ALL_FEATURES[name], flag: FEATURE_FLAGS[name], rules: rulesOf(name) };
    }),
    rules: RULES.map((rule) => ({ ...rule, rule: ruleText(rule) })),
  };
}

const FEATURE_NAMES = Object.keys(ALL_FEATURES) as (keyof typeof ALL_FEATURES)[];

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
  if (style.json) return asJson(legalityTable());
  const rows = RULES.map((rule) => [
    rule.id,
    rule.kind,
    `${capitalised(ruleText(rule, AS_FLAGS))}. ${rule.reason}`,
  ]);
  const features = FEATURE_NAMES.map((name) => [
    name,
    FEATURE_FLAGS[name] ?? "",
    `${capitalised(ALL_FEATURES[name].meaning)}.`,
  ]);
  return [
    forPeople(["RULE", "KIND", "MEANING"], rows, style),
    forPeople(["FEATURE", "TOLD BY", "MEANING"], features, style),
  ].join("\n");
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

function asJson(rows: object): string {
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
