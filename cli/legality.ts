import { parseAddress } from "../channels/address.ts";
import {
  type Features,
  LEGALITY,
  type LegalityProblem,
  legalityProblems,
} from "../engine/legality.ts";
import { type ParameterOptions, resolveParameters } from "../engine/parameters.ts";
import { addressFeatures, type Command, parseFlags } from "./flags.ts";
import { chooseOutput } from "./output.ts";
import { checkUsage, EXIT, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { flushed, say } from "./standard-streams.ts";
import { AS_FLAGS } from "./values.ts";

const SIDE = { type: "choice", choices: ["source", "destination"] } as const;

/** With `--check`; without it the command prints the rules and takes no parameters. */
export const LEGALITY_CHECK = {
  name: "legality",
  summary:
    "Tells which features and parameters go together, and why; or, with --check, whether those given do.",
  positionals: [
    { name: "ADDRESS", optional: true, meaning: "with --check: where the configuration would go" },
  ],
  flags: {
    check: {
      meaning:
        "Says whether this configuration is legal, before anything starts: exit status 0, or 1 and the rules that it breaks.",
    },
    side: { value: SIDE, default: "source", meaning: "With --check: the end that is configured." },
    throttle: {
      value: { type: "boolean" },
      meaning:
        "With --check: whether the source's host can slow its guest down; unknown unless given.",
    },
    "dirty-log": {
      value: { type: "choice", choices: ["none", "bitmap", "scan"] },
      meaning: "With --check: how writes to the guest's memory are found; unknown unless given.",
    },
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
} as const satisfies Command;

/** Whether an argument asks for a check. */
export function isCheck(argument: string): boolean {
  return argument === "--check" || argument.startsWith("--check=");
}

/** A rule that a configuration breaks, as `--check` tells it. */
export interface BrokenRule extends LegalityProblem {
  readonly reason: string;
}

/** Judges one configuration. Returns the exit status: 0 where it is legal, 1 where it is not. */
export async function checkLegality(argv: readonly string[]): Promise<number> {
  const { options, flags, positionals, mistakes } = parseFlags(LEGALITY_CHECK, argv);
  const [address] = positionals;
  const { "dirty-log": dirtyLog } = flags;
  try {
    checkUsage([...addressMistakes(address), ...mistakes]);
  } catch (error) {
    return tellFailure(chooseOutput({ json: flags.json }), error);
  }
  const problems = brokenRules(options, {
    side: flags.side,
    migration: "live",
    ...addressFeatures(address),
    ...(flags.throttle === undefined ? {} : { throttle: flags.throttle }),
    ...(dirtyLog === undefined ? {} : { dirtyLog }),
  });
  say(flags.json ? asJson(problems) : asText(problems));
  // The answer is all there is to this command, so losing it is its failure.
  const isTold = (await flushed()) === null;
  return isTold && problems.length === 0 ? EXIT.completed : EXIT.failed;
}

/** The rules that parameters, each right by itself, break together with the features. */
export function brokenRules(options: ParameterOptions, features: Features): BrokenRule[] {
  const configuration = {
    parameters: { ...resolveParameters(), ...options },
    given: Object.keys(options),
    features,
  };
  const reasons = new Map(LEGALITY.map(({ id, reason }) => [id, reason]));
  return legalityProblems(configuration, AS_FLAGS).map((problem) => ({
    ...problem,
    reason: reasons.get(problem.rule) ?? "",
  }));
}

/** An address that cannot be read is no configuration; a file is one, and a rule speaks about it. */
function addressMistakes(address: string | undefined): string[] {
  if (address === undefined || address.startsWith("file:")) return [];
  try {
    parseAddress(address);
    return [];
  } catch (error) {
    if (error instanceof RangeError) return [error.message];
    throw error;
  }
}

function asJson(problems: readonly BrokenRule[]): string {
  return `${JSON.stringify({ legal: problems.length === 0, problems })}\n`;
}

function asText(problems: readonly BrokenRule[]): string {
  if (problems.length === 0) return "legal\n";
  return problems.map(({ rule, message }) => `${rule}: ${message}\n`).join("");
}
