import { readFileSync } from "node:fs";
import { asMigrationError, MigrationError } from "../base/errors.ts";
import { nearest } from "../engine/nearest.ts";
import { DEMO, demo } from "./demo.ts";
import { type Command, parseFlags } from "./flags.ts";
import { HANDOVER, handover } from "./handover.ts";
import { helpText, overviewText } from "./help.ts";
import { leave } from "./leave.ts";
import { checkLegality, isCheck, LEGALITY_CHECK } from "./legality.ts";
import { chooseOutput } from "./output.ts";
import { RECEIVE, receive } from "./receive.ts";
import { RECOVER, recover } from "./recover.ts";
import { checkUsage, EXIT, endOnInterrupt, tellFailure } from "./run.ts";
import { SEND, send } from "./send.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { complain, flushed, say } from "./standard-streams.ts";
import { printFailures, printLegality, printParameters, type TableStyle } from "./tables.ts";

interface Entry {
  readonly command: Command;
  readonly run: (argv: readonly string[]) => Promise<number>;
}

const RULES = tableEntry("legality", LEGALITY_CHECK.summary, printLegality);

const COMMANDS: readonly Entry[] = [
  { command: DEMO, run: demo },
  { command: RECEIVE, run: receive },
  { command: SEND, run: send },
  { command: HANDOVER, run: handover },
  { command: RECOVER, run: recover },
  tableEntry(
    "parameters",
    "Tells every parameter: type, bounds, default and why.",
    printParameters,
  ),
  {
    command: LEGALITY_CHECK,
    run: (argv) => (argv.some(isCheck) ? checkLegality(argv) : RULES.run(argv)),
  },
  tableEntry("failures", "Tells every way to fail, and what to do then.", printFailures),
];

/**
 * Runs one command line, without the program's name, and ends the process when everything that was
 * said has been taken.
 */
export async function main(argv: readonly string[]): Promise<never> {
  // Meant for a source that may go over; else it would open Node's debugger.
  process.on("SIGUSR1", () => {});
  process.on("uncaughtException", (error) => void endWith(error, argv));
  const status = await dispatch(argv);
  endOnInterrupt(status);
  const lost = await flushed();
  if (lost !== null) {
    complain(`Some output was lost: ${lost}\n`);
    await flushed();
  }
  return await leave(status);
}

async function dispatch(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === "--version") return tell(`${packageVersion()}\n`);
  if (name === "--help" || name === "-h") return tell(overview());
  if (name === "help") return help(rest);
  const entry = entryOf(name);
  if (entry === undefined) return usage(name, argv);
  if (rest.includes("--help") || rest.includes("-h")) return help([entry.command.name]);
  return await entry.run(rest);
}

function entryOf(name: string | undefined): Entry | undefined {
  return COMMANDS.find(({ command }) => command.name === name);
}

function help([name]: readonly string[]): number {
  if (name === undefined) return tell(overview());
  const entry = entryOf(name);
  return entry === undefined ? usage(name, []) : tell(helpText(entry.command, columns()));
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
      say(print({ json: flags.json, columns: columns() }));
      // The output is all there is to this command, so losing it is its failure.
      return (await flushed()) === null ? EXIT.completed : EXIT.failed;
    },
  };
}

function tell(text: string): number {
  say(text);
  return EXIT.completed;
}

/** There is no command of this name. A program is told as always; people see what there is. */
function usage(name: string | undefined, argv: readonly string[]): number {
  const problem = unknownCommand(name);
  if (argv.includes("--json")) {
    const failure = new MigrationError("CONFIGURATION_INVALID", { problems: [problem] });
    return tellFailure(chooseOutput({ json: true }), failure);
  }
  complain(`${problem}\n\n${overview()}`);
  return EXIT.usage;
}

function unknownCommand(name: string | undefined): string {
  if (name === undefined || name === "--json") return "a command is needed";
  const known = [...COMMANDS.map(({ command }) => command.name), "help", "--help", "--version"];
  const close = nearest(name, known);
  return `"${name}" is not a command${close === undefined ? "" : `; did you mean "${close}"?`}`;
}

/** A bug. What it broke is unknown, so nothing goes on; it is told in the same words as the rest. */
async function endWith(error: unknown, argv: readonly string[]): Promise<never> {
  const json = argv.includes("--json");
  const status = tellFailure(chooseOutput({ json }), asMigrationError(error));
  await flushed();
  return await leave(status);
}

function overview(): string {
  return overviewText(
    COMMANDS.map(({ command }) => command),
    columns(),
  );
}

/** A terminal that does not say how wide it is says 0. */
function columns(): number | undefined {
  return process.stdout.isTTY === true ? process.stdout.columns || undefined : undefined;
}

/** From the package's own description: beside the sources, or above the built modules. */
function packageVersion(): string {
  const file = import.meta.url.endsWith(".ts") ? "../package.json" : "../../package.json";
  const description = JSON.parse(readFileSync(new URL(file, import.meta.url), "utf8"));
  return String(description.version);
}
