import { isFailureCode, MigrationError } from "../base/errors.ts";
import { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import type { PostcopySwitch } from "../engine/postcopy-switch.ts";
import { socketPathProblem } from "./address-problems.ts";
import { type Answer, askControl, openControl } from "./control-socket.ts";
import { failureText, printable } from "./failure-text.ts";
import { type Command, type CommandFlag, parseFlags } from "./flags.ts";
import { chooseOutput, type Output } from "./output.ts";
import { checkUsage, EXIT, INTERRUPTS, tellFailure } from "./run.ts";
import { HELP_FLAG, JSON_FLAG } from "./shared-flags.ts";
import { complain, say } from "./standard-streams.ts";

/** For commands that migrate. */
export const CONTROL_FLAG = {
  value: "text",
  placeholder: "PATH",
  problemOf: socketPathProblem,
  meaning:
    "Makes a unix socket there, for `multifd recover`: to go on when the link breaks in post-copy.",
} as const satisfies CommandFlag;

export const RECOVER = {
  name: "recover",
  summary: "Goes on with a post-copy whose link broke, at the end whose --control PATH is.",
  positionals: [
    { name: "PATH", meaning: "the --control of a `send` or `receive` that is paused" },
    {
      name: "ADDRESS",
      optional: true,
      meaning:
        "where the source joins the destination, if not where it was; given to a destination, where it listens as well",
    },
  ],
  flags: {
    status: { meaning: "Only tells the phase, and why it is paused if it is." },
    postcopy: { meaning: "Begins post-copy now, where the source's --postcopy allows it." },
    pause: { meaning: "Breaks a post-copy off, to go on over another link." },
    json: JSON_FLAG,
    help: HELP_FLAG,
  },
  parameters: false,
} as const satisfies Command;

/** By their flags. */
const OTHER_DEEDS = ["status", "postcopy", "pause"] as const;

export async function recover(argv: readonly string[]): Promise<number> {
  const { flags, positionals, problems } = parseFlags(RECOVER, argv);
  const output = chooseOutput({ json: flags.json });
  const [path = "", address] = positionals;
  try {
    const [deed = "recover", ...more] = OTHER_DEEDS.filter((each) => flags[each]);
    const contradictions = [
      ...more.map((each) => `--${deed} and --${each} exclude each other`),
      ...(deed !== "recover" && address !== undefined ? ["ADDRESS is for a recovery"] : []),
    ];
    checkUsage([...problems, ...pathProblems(positionals[0]), ...contradictions]);
    const answer = await askControl(path, {
      do: deed,
      ...(address === undefined ? {} : { address }),
    });
    if (flags.json) say(`${JSON.stringify(answer)}\n`);
    else tell(answer);
    return answer.event === "status" || answer.event === "recovered" ? EXIT.completed : EXIT.failed;
  } catch (error) {
    return tellFailure(output, error);
  }
}

function pathProblems(path: string | undefined): string[] {
  if (path === undefined) return []; // It is told to be missing.
  if (path === "") return ["PATH is empty: give the --control of a `send` or `receive`"];
  const problem = socketPathProblem(path);
  return problem === undefined ? [] : [`PATH ${problem}`];
}

function tell(answer: Answer): void {
  switch (answer.event) {
    case "status": {
      const { message } = (answer.pausedFor ?? {}) as { message?: string };
      say(printable(`phase ${answer.phase}${message === undefined ? "" : `: ${message}`}\n`));
      return;
    }
    case "recovered":
      say(`recovered at ${answer.address}\n`);
      return;
    case "refused":
      complain(`It was refused: ${answer.reason}\n`);
      return;
    case "failed":
      complain(toldText(answer.failure));
  }
}

/** What is told may be of another version, which has failures that this one does not know. */
function toldText(failure: object): string {
  const { code, facts, at, message } = failure as Partial<ReturnType<MigrationError["toJSON"]>>;
  if (code === undefined || !isFailureCode(code)) return printable(`${code}: ${message}\n`);
  return failureText(new MigrationError(code, facts as never, at === undefined ? {} : { at }));
}

/** What a command hands to its migration so that `multifd recover` can reach it. */
export interface Control extends AsyncDisposable {
  readonly recovery: PostcopyRecovery;
  onPhase(phase: string): void;
}

/**
 * Opens the socket at `path`, if there is to be one, and tells `output` of every pause. A source
 * gives its `postcopySwitch`, for whoever asks it there to go over.
 */
export async function controlled(
  path: string | undefined,
  output: Output,
  postcopySwitch?: PostcopySwitch,
): Promise<Control> {
  const recovery = new PostcopyRecovery();
  let current = "";
  const whole = { recovery, postcopySwitch, phase: () => current };
  const socket = path === undefined ? null : await openControl(path, whole);
  // A cancel that came too late is spent: in a pause another interrupt ends it.
  const giveUp = () => recovery.giveUp();
  for (const interrupt of INTERRUPTS) process.on(interrupt, giveUp);
  return {
    recovery,
    onPhase(phase) {
      current = phase;
      const reason = recovery.pausedFor;
      if (phase !== "postcopy-paused" || reason === null) return;
      const way = path === undefined ? "the source" : `\`multifd recover ${path}\``;
      output.note(`paused, everything is kept for ${way} to go on: ${reason.message}`);
    },
    async [Symbol.asyncDispose]() {
      for (const interrupt of INTERRUPTS) process.off(interrupt, giveUp);
      await socket?.[Symbol.asyncDispose]();
    },
  };
}
