import { readFileSync } from "node:fs";
import { nearest } from "../engine/nearest.ts";
import { DEMO, demo } from "./demo.ts";
import { type Command, parseFlags } from "./flags.ts";
import { helpText, overviewText } from "./help.ts";
import { chooseOutput } from "./output.ts";
import { RECEIVE, receive } from "./receive.ts";
import { checkUsage, EXIT, tellFailure } from "./run.ts";
import { SEND, send } from "./send.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { printFailures, printLegality, printParameters, type TableStyle } from "./tables.ts";

interface Entry {
  readonly command: Command;
  readonly run: (argv: readonly string[]) => Promise<number>;
}

const COMMANDS: readonly Entry[] = [
  { command: DEMO, run: demo },
  { command: RECEIVE, run: receive },
  { command: SEND, run: send },
  tableEntry(
    "parameters",
    "Tells every parameter: type, bounds, default and why.",
    printParameters,
  ),
  tableEntry(
    "legality",
    "Tells which features and parameters go together, and why.",
    printLegality,
  ),
  tableEntry("failures", "Tells every way to fail, and what to do then.", printFailures),
];

/** Runs one command line, without the program's name. Returns the exit status. */
export async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === "--version") return say(`${packageVersion()}\n`);
  if (name === undefined) return usage("a command is needed");
  if (name === "--help" || name === "-h" || name === "help") return say(overview());
  const entry = COMMANDS.find(({ command }) => command.name === name);
  if (entry === undefined) {
    const close = nearest(
      name,
      COMMANDS.map(({ command }) => command.name),
    );
    return usage(
      `"${name}" is not a command${close === undefined ? "" : `; did you mean "${close}"?`}`,
    );
  }
  if (rest.includes("--help") || rest.includes("-h"))
    return say(helpText(entry.command, columns()));
  return await entry.run(rest);
}

function tableEntry(name: string, summary: string, print: (style: TableStyle) => string): Entry {
  const command = {
    name,
    summary,
    positionals: [],
    flags: { json: JSON_FLAG, help: HELP_FLAG },
    parameters: false,
  } as const satisfies Command;
  return {
    command,
    async run(argv) {
      const { flags, problems } = parseFlags(command, argv);
      try {
        checkUsage(problems);
      } catch (error) {
        return tellFailure(chooseOutput({ json: flags.json }), error);
      }
      return say(print({ json: flags.json, ...columnsStyle() }));
    },
  };
}

function say(text: string): number {
  process.stdout.write(text);
  return EXIT.completed;
}

function usage(problem: string): number {
  process.stderr.write(`${problem}\n\n${overview()}`);
  return EXIT.usage;
}

function overview(): string {
  return overviewText(
    COMMANDS.map(({ command }) => command),
    columns(),
  );
}

function columns(): number | undefined {
  return process.stdout.isTTY === true ? process.stdout.columns : undefined;
}

function columnsStyle(): { columns?: number } {
  const wide = columns();
  return wide === undefined ? {} : { columns: wide };
}

/** From the package's own description: beside the sources, or above the built modules. */
function packageVersion(): string {
  const file = import.meta.url.endsWith(".ts") ? "../package.json" : "../../package.json";
  const description = JSON.parse(readFileSync(new URL(file, import.meta.url), "utf8"));
  return String(description.version);
}
