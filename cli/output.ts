import type { MigrationError, Origin } from "../base/errors.ts";
import type { Progress, Report } from "../engine/statistics.ts";
import { failureText, printable } from "./failure-text.ts";
import { progressLine, progressText } from "./progress-text.ts";
import { reportText } from "./report-text.ts";
import { complain, say } from "./standard-streams.ts";

/** What a command says while it runs, in one of three voices; see `chooseOutput`. */
export interface Output {
  /** Which end of a migration speaks; absent where a command is neither. */
  readonly side: Origin | undefined;
  /** The first phase of a destination, said when its address is known. */
  listening(address: string): void;
  phase(phase: string): void;
  progress(progress: Progress): void;
  note(text: string): void;
  completed(report: Report): void;
  failed(failure: MigrationError): void;
}

/** Lines for a pipe and events for a program come this often at most; a terminal redraws more. */
const LINE_MS = 1000;
const EVENT_MS = 250;

/** A program gets JSON lines, a terminal a progress bar, a pipe plain lines. */
export function chooseOutput(options: { json: boolean; side?: Origin }): Output {
  const { json, side } = options;
  if (json) return jsonOutput(side);
  const isTerminal = process.stdout.isTTY === true && process.env["TERM"] !== "dumb";
  return isTerminal ? terminalOutput(side) : plainOutput(side);
}

/** Every line is one JSON object with an `event`. */
function jsonOutput(side: Origin | undefined): Output {
  const event = (name: string, fields: object): void =>
    say(`${JSON.stringify({ event: name, ...fields })}\n`);
  const isDue = atMostEvery(EVENT_MS);
  return {
    side,
    listening(address) {
      event("listening", { address });
      event("phase", { phase: "listen" });
    },
    phase: (phase) => event("phase", { phase }),
    progress: (progress) => isDue() && event("progress", progress),
    note: (text) => event("note", { text }),
    completed: (report) => event("completed", { report }),
    failed: (failure) => event("failed", { failure: failure.toJSON() }),
  };
}

function plainOutput(side: Origin | undefined): Output {
  const isDue = atMostEvery(LINE_MS);
  return {
    side,
    listening: (address) => say(`listening on ${address}\n`),
    phase: (phase) => say(`phase ${phase}\n`),
    progress: (progress) => isDue() && say(`${progressText(progress, side)}\n`),
    note: (text) => say(`${printable(text)}\n`),
    completed: (report) => say(`completed\n${reportText(report)}`),
    failed: (failure) => complain(failureText(failure)),
  };
}

/** To the line's beginning; and, behind what was written over the old text, away with its rest. */
const HOME = "\r";
const CLEAR_REST = "\u001b[K";

/** Narrower than most terminals are, for one that does not say. */
const COLUMNS_UNKNOWN = 80;

/** The last line is redrawn in place; what stays is written over it. */
function terminalOutput(side: Origin | undefined): Output {
  const stay = (text: string): void => say(`${HOME}${CLEAR_REST}${text}`);
  const redraw = (text: string): void => say(`${HOME}${text}${CLEAR_REST}`);
  return {
    side,
    listening: (address) => stay(`listening on ${address}\n`),
    phase: (phase) => redraw(`phase ${phase}`),
    progress(progress) {
      // One column less: a full line would wrap, and could not be redrawn.
      redraw(progressLine(progress, side, (process.stdout.columns || COLUMNS_UNKNOWN) - 1));
    },
    note: (text) => stay(`${printable(text)}\n`),
    completed: (report) => stay(`completed\n${reportText(report)}`),
    failed(failure) {
      stay("");
      complain(failureText(failure));
    },
  };
}

function atMostEvery(ms: number): () => boolean {
  let lastMs = Number.NEGATIVE_INFINITY;
  return () => {
    const now = performance.now();
    if (now - lastMs < ms) return false;
    lastMs = now;
    return true;
  };
}
