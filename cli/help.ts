import type { Domain } from "../engine/domain.ts";
import { flagOf, PARAMETER_KEYS, type ParameterRow, rowOf } from "../engine/parameters.ts";
import type { Command, CommandFlag } from "./flags.ts";
import { aligned, wrapped } from "./layout.ts";
import { formatValue } from "./values.ts";

const PLACEHOLDERS = {
  count: "N",
  bytes: "SIZE",
  bytesPerSecond: "RATE",
  milliseconds: "TIME",
  percent: "PERCENT",
  cores: "CORES",
};

const UNITS =
  "Sizes are written as 4096, 64KiB, 2MiB or 1GiB, rates as 100MiB/s, times as 500us, 300ms, 2s, 5min or 1h.";

const SIDES = [
  { side: "both", title: "Parameters of both ends:" },
  { side: "source", title: "Parameters of the source:" },
  { side: "destination", title: "Parameters of the destination:" },
] as const;

/** The help of one command: everything it takes. Ends in a line feed. */
export function helpText(command: Command, columns?: number): string {
  const names = command.positionals.map(({ name, optional }) => (optional ? `[${name}]` : name));
  const own = Object.entries(command.flags);
  const usage = ["Usage: multifd", command.name, ...names, "[FLAGS]"].join(" ");
  const positionals = command.positionals.map(({ name, meaning }) => [name, meaning]);
  return [
    `${usage}\n`,
    `${wrapped(command.summary, columns ?? 100).join("\n")}\n`,
    section("", positionals, columns),
    section("Flags:", own.map(flagRow), columns),
    ...(command.parameters ? parameterSections(columns) : []),
  ]
    .filter((part) => part !== "")
    .join("\n");
}

/** What there is to run, one line each. Ends in a line feed. */
export function overviewText(commands: readonly Command[], columns?: number): string {
  const rows = commands.map(({ name, summary }) => [name, summary]);
  const more = "`multifd COMMAND --help` tells what a command takes.\n";
  return `Usage: multifd COMMAND [ARGUMENTS]\n\n${section("Commands:", rows, columns)}\n${more}`;
}

function parameterSections(columns: number | undefined): string[] {
  const sections = SIDES.map(({ side, title }) => {
    const keys = PARAMETER_KEYS.filter((key) => rowOf(key).side === side);
    return section(
      title,
      keys.map((key) => [flagText(flagOf(key), rowOf(key)), meaningOf(rowOf(key))]),
      columns,
    );
  });
  return [...sections, `${wrapped(UNITS, columns ?? 100).join("\n")}\n`];
}

function section(
  title: string,
  rows: readonly (readonly string[])[],
  columns: number | undefined,
): string {
  if (rows.length === 0) return "";
  const size = columns === undefined ? {} : { columns };
  return `${title === "" ? "" : `${title}\n`}${aligned(rows, { indent: "  ", ...size })}`;
}

function flagRow([name, flag]: [string, CommandFlag]): string[] {
  const short = flag.short === undefined ? "" : `-${flag.short}, `;
  const again = flag.repeatable ? " May be given several times." : "";
  return [`${short}${commandFlagText(name, flag)}`, `${flag.meaning}${again}${defaultOf(flag)}`];
}

function commandFlagText(name: string, { value, placeholder }: CommandFlag): string {
  if (value === undefined) return `--${name}`;
  if (placeholder !== undefined || value === "text") return `--${name} ${placeholder ?? "TEXT"}`;
  return flagText(name, value);
}

function flagText(name: string, domain: Domain): string {
  if (domain.type === "boolean") return `--[no-]${name}`;
  if (domain.type === "choice") return `--${name} ${domain.choices.join("|")}`;
  return `--${name} ${PLACEHOLDERS[domain.type]}`;
}

function meaningOf(row: ParameterRow): string {
  const agreed = row.agreed ? " Both ends must have the same." : "";
  const zero = "zero" in row ? ` 0 is ${row.zero}.` : "";
  return `${row.meaning}${zero}${agreed} Default ${formatValue(row, row.default)}.`;
}

function defaultOf(flag: CommandFlag): string {
  if (flag.default === undefined) return "";
  const { value = "text", default: preset } = flag;
  return ` Default ${value === "text" ? String(preset) : formatValue(value, preset)}.`;
}
