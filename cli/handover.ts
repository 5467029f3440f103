import { callHost } from "../engine/attempt.ts";
import { type HandoverNote, HandoverRecord, type Side } from "../hosts/handover-record.ts";
import { ShellCommand } from "../hosts/shell-command.ts";
import { type Command, type CommandFlag, parseFlags } from "./flags.ts";
import { chooseOutput } from "./output.ts";
import { checkUsage, EXIT, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { say } from "./standard-streams.ts";

/** As long as a step of a host may take by default. */
const RESUME_MS = 30_000;

/** For `send` and `receive`. */
export const RECORD_FLAG = {
  value: "text",
  placeholder: "FILE",
  meaning: "Keeps there who owns the guest, for `multifd handover`. One of its own for each guest.",
} as const satisfies CommandFlag;

export const HANDOVER = {
  name: "handover",
  summary:
    "Tells from the --record of one end or of both who owns a guest, and settles it where that is in doubt.",
  positionals: [
    { name: "RECORD", meaning: "the source's or the destination's" },
    { name: "RECORD", optional: true, meaning: "the other end's, where it can be read from here" },
  ],
  flags: {
    settle: {
      meaning:
        "Settles it: what the destination has not taken over is taken back, and it will not run it, even if COMMIT is still on its way.",
    },
    owner: {
      value: { type: "choice", choices: ["source", "destination"] },
      meaning:
        "With --settle and the source's record alone: who owns it, on your word. Say source only when the destination's own record says so, or it can surely never run the guest.",
    },
    "resume-command": {
      value: "text",
      placeholder: "COMMAND",
      meaning:
        "With --settle: a shell command that runs the guest at the source, if it is its own.",
    },
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: false,
} as const satisfies Command;

/** What records may say together, and what to do then. */
export const VERDICTS = {
  "at the source": {
    owner: "source",
    advice: "The destination does not run it and never will. Run it at the source.",
  },
  "not handed over": {
    owner: "source",
    advice: "Where a migration is under way, it still may be.",
  },
  "at the destination": {
    owner: "destination",
    advice: "It runs there. Destroy the copy that is paused at the source.",
  },
  "taken over": {
    owner: "destination",
    advice:
      "It was taken over, but not said to run. Look at the destination, run it there, and never at the source.",
  },
  "handed over": {
    owner: "destination",
    advice: "Destroy the copy that is paused at the source.",
  },
  undecided: {
    owner: "unknown",
    advice:
      "The destination has not taken it over, and still may. `multifd handover --settle` with its record takes it back.",
  },
  "in doubt": {
    owner: "unknown",
    advice:
      "It was handed over, or not: the source cannot know. Leave it paused, and ask the destination's record.",
  },
  contradiction: {
    owner: "unknown",
    advice: "The records are not of the same migration. Run nothing before you know.",
  },
} as const satisfies Record<string, { owner: Side | "unknown"; advice: string }>;
export type Verdict = keyof typeof VERDICTS;

type Notes = Readonly<Partial<Record<Side, HandoverNote>>>;

/** What the notes say together. The destination's word counts, if there is one. */
export function verdictOf({ source, destination }: Notes): Verdict {
  if (destination === undefined) {
    if (source?.owner === "source") return "not handed over";
    return source?.owner === "destination" ? "handed over" : "in doubt";
  }
  if (source !== undefined && !areOfOne(source, destination)) return "contradiction";
  const { owner, runs } = destination;
  const isTold = source !== undefined && source.owner !== "unknown" && owner !== "unknown";
  if (isTold && source.owner !== owner) return "contradiction";
  if (owner === "destination") return runs ? "at the destination" : "taken over";
  if (owner === "source") return "at the source";
  if (source?.owner === "source") return "not handed over";
  return source?.owner === "destination" ? "contradiction" : "undecided";
}

/**
 * Whether they are of one migration. A destination knows it before the source may hand anything over;
 * a source that has the guest may not have met this destination, or not yet.
 */
function areOfOne(source: HandoverNote, destination: HandoverNote): boolean {
  if (source.migration === destination.migration) return true;
  const isKnown = source.migration !== null && destination.migration !== null;
  return source.owner === "source" && !isKnown;
}

export async function handover(argv: readonly string[]): Promise<number> {
  const { flags, positionals, problems } = parseFlags(HANDOVER, argv);
  const output = chooseOutput({ json: flags.json });
  try {
    if (!flags.settle && (flags.owner ?? flags["resume-command"]) !== undefined) {
      checkUsage([...problems, "--owner and --resume-command need --settle"]);
    }
    checkUsage(problems);
    const records = recordsAt(positionals);
    const command = flags["resume-command"];
    if (command !== undefined && records.source === undefined) {
      checkUsage(["--resume-command is for the source: its record is needed, too"]);
    }
    let isResumed = false;
    const resume = async (text: string): Promise<void> => {
      isResumed = true;
      await new ShellCommand(text).run();
    };
    if (flags.settle) {
      await settle(records, flags.owner, command === undefined ? undefined : () => resume(command));
    }
    const notes = notesOf(records);
    const verdict = verdictOf(notes);
    const { owner, advice } = VERDICTS[verdict];
    if (command !== undefined && owner === "source" && !isResumed) {
      checkUsage([
        "--resume-command was not run: there was nothing to settle, and a migration may be under way",
      ]);
    }
    if (flags.json) {
      say(`${JSON.stringify({ event: "handover", owner, verdict, advice, ...notes })}\n`);
    } else say(textOf(notes, verdict));
    return owner === "unknown" ? EXIT.failed : EXIT.completed;
  } catch (error) {
    return tellFailure(output, error);
  }
}

/** The record that a command is told to keep, begun. */
export function beginRecord(path: string | undefined, side: Side): HandoverRecord | undefined {
  if (path === undefined) return undefined;
  const record = new HandoverRecord(path);
  record.begin(side);
  return record;
}

/** Those that can be read. */
type Records = Readonly<Partial<Record<Side, Pick<HandoverRecord, "read" | "write" | "decide">>>>;

function recordsAt(paths: readonly string[]): Records {
  const records: Partial<Record<Side, HandoverRecord>> = {};
  for (const path of paths) {
    const record = new HandoverRecord(path);
    const { side } = record.read();
    if (records[side] !== undefined) checkUsage([`both records are a ${side}'s`]);
    records[side] = record;
  }
  return records;
}

export function notesOf({ source, destination }: Records): Notes {
  return {
    ...(source === undefined ? {} : { source: source.read() }),
    ...(destination === undefined ? {} : { destination: destination.read() }),
  };
}

/**
 * Leaves one owner, in both records. First it is decided at the destination, whatever the source
 * says: its migration may be under way. Only then may the guest run at the source, which `resume`
 * does. `word` is somebody's who knows, where the source's record is there alone.
 */
export async function settle(
  records: Records,
  word?: Side,
  resume?: () => Promise<unknown>,
): Promise<void> {
  const { source, destination } = records;
  if (verdictOf(notesOf(records)) === "contradiction") {
    checkUsage(["the records are not of the same migration: nothing was settled"]);
  }
  if (word === "destination" && destination?.read().owner === "unknown") {
    checkUsage(["--owner destination is for a destination whose record cannot be read"]);
  }
  destination?.decide("source");
  const verdict = verdictOf(notesOf(records));
  const isAsked = verdict === "in doubt" && word !== undefined;
  const owner = isAsked ? word : VERDICTS[verdict].owner;
  if (word !== undefined && owner !== word) {
    checkUsage([`--owner ${word} is not what the records say: ${verdict}`]);
  }
  const isSettled = isAsked || (destination !== undefined && owner !== "unknown");
  if (source === undefined || !isSettled) return;
  source.write({ side: "source", owner, runs: false });
  if (owner !== "source" || resume === undefined) return;
  await callHost("resume the guest", RESUME_MS, resume);
}

function textOf({ source, destination }: Notes, verdict: Verdict): string {
  const { owner, advice } = VERDICTS[verdict];
  const lines = [
    `owner        ${owner} (${verdict})`,
    ...(source === undefined ? [] : [`source       says ${source.owner}`]),
    ...(destination === undefined
      ? []
      : [`destination  says ${destination.owner}${destination.runs ? ", and that it runs" : ""}`]),
    advice,
  ];
  return lines.map((line) => `${line}\n`).join("");
}
