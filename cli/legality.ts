import { parseAddress } from "../channels/address.ts";
import { addressFeatures, type Command, type Parsed, parseFlags } from "./flags.ts";
import { guestFeatures, namedHost, WRITER_FLAGS, writerFeatures } from "./guest-flags.ts";
import type { GuestFeatures } from "./guest-rules.ts";
import { RECORD_FLAG } from "./handover.ts";
import { MEMORY_FLAG, parseMemoryFlags } from "./memory-flag.ts";
import {
  MEMORY_GUEST_FLAG,
  RUN_FOR_FLAG,
  SHAPE_FLAGS,
  shapeProblems,
  VCPUS_FLAG,
  withMemoryGuest,
} from "./memory-guest-flags.ts";
import { chooseOutput } from "./output.ts";
import { CONTROL_FLAG } from "./recover.ts";
import { FEATURE_FLAGS, type Judgement, judge, type UndecidedRule } from "./rules.ts";
import { checkUsage, EXIT, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { flushed, say } from "./standard-streams.ts";

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
        "Says whether this configuration is legal, before anything starts. Exit status 0: it breaks no rule, as far as is known; what could not be decided is listed. 1: it breaks the rules listed. 2: wrong usage.",
    },
    side: { value: SIDE, default: "source", meaning: "With --check: the end that is configured." },
    host: {
      value: { type: "choice", choices: ["files", "qemu", "memory-guest"] },
      meaning:
        "With --check: whose guest it is, where neither --memory, --qemu nor --memory-guest says it.",
    },
    memory: { ...MEMORY_FLAG, meaning: "With --check: as of `send` and `receive`; not opened." },
    qemu: {
      value: "text",
      placeholder: "QMP_SOCKET",
      meaning: "With --check: as of `send` and `receive`; not opened.",
    },
    "memory-guest": {
      ...MEMORY_GUEST_FLAG,
      meaning: "With --check: as of `send` and `receive`; not started.",
    },
    ...withMemoryGuest({ vcpus: VCPUS_FLAG, ...SHAPE_FLAGS, "run-for": RUN_FOR_FLAG }),
    "dirty-log": {
      value: { type: "choice", choices: ["none", "bitmap", "scan"] },
      meaning:
        "With --check: how writes to the guest's memory are found, where the host does not say it; for files it is none unless given.",
    },
    "pause-command": {
      ...WRITER_FLAGS["pause-command"],
      meaning: "With --check: as of `send`; not run.",
    },
    "resume-command": {
      ...WRITER_FLAGS["resume-command"],
      meaning: "With --check: as of `send`; not run.",
    },
    throttle: {
      value: { type: "boolean" },
      meaning:
        "With --check: whether the source's host can slow its guest down, where the host does not say it.",
    },
    faults: {
      value: { type: "boolean" },
      meaning:
        "With --check: whether the destination's host lets a guest wait for pages (post-copy), where the host does not say it.",
    },
    record: { ...RECORD_FLAG, meaning: "With --check: as of `send` and `receive`; not opened." },
    control: { ...CONTROL_FLAG, meaning: "With --check: as of `send` and `receive`; not opened." },
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: true,
} as const satisfies Command;

/** Whether an argument asks for a check. */
export function isCheck(argument: string): boolean {
  return argument === "--check" || argument.startsWith("--check=");
}

/**
 * Judges one configuration. Returns the exit status: 0 where nothing that is known breaks a rule, 1
 * where something does, 2 for what is no configuration.
 */
export async function checkLegality(argv: readonly string[]): Promise<number> {
  const parsed = parseFlags(LEGALITY_CHECK, argv);
  const { options, flags, positionals, mistakes } = parsed;
  try {
    checkUsage([
      ...addressMistakes(positionals[0]),
      ...mistakes,
      ...memoryMistakes(flags.memory),
      ...(flags["memory-guest"] && flags.side === "source" ? shapeProblems(flags) : []),
    ]);
  } catch (error) {
    return tellFailure(chooseOutput({ json: flags.json }), error);
  }
  const judgement = judge(options, checkedFeatures(parsed));
  say(flags.json ? `${JSON.stringify(judgement)}\n` : asText(judgement));
  // The answer is all there is to this command, so losing it is its failure.
  const isTold = (await flushed()) === null;
  return isTold && judgement.legal !== false ? EXIT.completed : EXIT.failed;
}

/** What the flags of a check and an address say, which may leave much open. */
export function checkedFeatures({
  flags,
  given,
  positionals,
}: Pick<Parsed<typeof LEGALITY_CHECK.flags>, "flags" | "given" | "positionals">): GuestFeatures {
  const { side, throttle, faults } = flags;
  const host = flags.host ?? namedHost(flags);
  return {
    side,
    migration: "live",
    ...guestFeatures(flags, given, host),
    ...writerFeatures(flags, side === "source" ? host : undefined),
    ...(throttle === undefined ? {} : { throttle }),
    ...(faults === undefined ? {} : { faults }),
    ...addressFeatures(positionals[0]),
  };
}

function memoryMistakes(memory: readonly string[]): string[] {
  const mistakes: string[] = [];
  if (memory.length > 0) parseMemoryFlags(memory, mistakes);
  return mistakes;
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

function asText({ legal, problems, undecided }: Judgement): string {
  const broken = problems.map(({ rule, message }) => `${rule}: ${message}\n`);
  const open = undecided.map((rule) => `not decided, ${openText(rule)}\n`);
  const verdict = { true: ["legal\n"], null: ["legal, as far as is known\n"], false: broken };
  return [...verdict[`${legal}`], ...open].join("");
}

function openText({ rule, message, needs }: UndecidedRule): string {
  const wanted = needs.map((name) => `${name} (${FEATURE_FLAGS[name] ?? "unknown"})`);
  return `${rule}: ${message}; needs to be known: ${wanted.join(", ")}`;
}
