import type { MigrationError } from "../base/errors.ts";
import { formatBytes, formatMs } from "../base/units.ts";
import type { Progress, Report } from "../engine/statistics.ts";
import { reportText } from "./report-text.ts";

/** What a command says while it runs, in one of three voices; see `chooseOutput`. */
export interface Output {
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
export function chooseOutput(options: { json: boolean }): Output {
  if (options.json) return jsonOutput();
  return process.stdout.isTTY === true ? terminalOutput() : plainOutput();
}

/** Every line is one JSON object with an `event`. */
function jsonOutput(): Output {
  const say = (event: string, fields: object): void => line(JSON.stringify({ event, ...fields }));
  const isDue = atMostEvery(EVENT_MS);
  return {
    listening: (address) => say("listening", { address }),
    phase: (phase) => say("phase", { phase }),
    progress: (progress) => isDue() && say("progress", progress),
    note: (text) => say("note", { text }),
    completed: (report) => say("completed", { report }),
    failed: (failure) => say("failed", { failure: failure.toJSON() }),
  };
}

function plainOutput(): Output {
  const isDue = atMostEvery(LINE_MS);
  return {
    listening: (address) => line(`listening on ${address}`),
    phase: (phase) => line(`phase ${phase}`),
    progress: (progress) => isDue() && line(progressText(progress)),
    note: line,
    completed: (report) => line(`completed\n${reportText(report).trimEnd()}`),
    failed: (failure) => process.stderr.write(failureText(failure)),
  };
}

const CLEAR_LINE = "\r\u001b[K";
const BAR_COLUMNS = 24;

function terminalOutput(): Output {
  const say = (text: string): void => {
    process.stdout.write(`${CLEAR_LINE}${text}\n`);
  };
  let phase = "";
  return {
    listening: (address) => say(`listening on ${address}`),
    phase(name) {
      phase = name;
      process.stdout.write(`${CLEAR_LINE}${phase}`);
    },
    progress(progress) {
      const columns = process.stdout.columns ?? 80;
      const text = `${bar(progress)} ${progressText(progress)}`;
      process.stdout.write(`${CLEAR_LINE}${text.slice(0, columns - 1)}`);
    },
    note: say,
    completed: (report) => say(`completed\n${reportText(report).trimEnd()}`),
    failed(failure) {
      process.stdout.write(CLEAR_LINE);
      process.stderr.write(failureText(failure));
    },
  };
}

/** How much of the guest is clean: what is left shrinks round by round. */
function bar({ dirtyBytes, totalBytes }: Progress): string {
  const share = totalBytes === 0 ? 1 : 1 - dirtyBytes / totalBytes;
  const full = Math.round(Math.min(1, Math.max(0, share)) * BAR_COLUMNS);
  return `[${"=".repeat(full)}${" ".repeat(BAR_COLUMNS - full)}]`;
}

export function progressText(progress: Progress): string {
  const { expectedDowntimeMs, throttlePercent } = progress;
  const parts = [
    `${progress.phase}, round ${progress.round}`,
    `dirty ${formatBytes(progress.dirtyBytes)}`,
    `${formatBytes(progress.bytesPerSecond)}/s`,
    `sent ${formatBytes(progress.sentBytes)}`,
  ];
  if (expectedDowntimeMs !== null && Number.isFinite(expectedDowntimeMs)) {
    parts.push(`expected downtime ${formatMs(expectedDowntimeMs)}`);
  }
  if (throttlePercent > 0) parts.push(`guest throttled ${throttlePercent} %`);
  return parts.join(", ");
}

/** What failed, in full, and what to do about it. */
export function failureText(failure: MigrationError): string {
  const where = failure.at === undefined ? "" : ` (at the ${failure.at})`;
  return `${failure.code}${where}: ${failure.message}\n${failure.advice}\n`;
}

function line(text: string): void {
  process.stdout.write(`${text}\n`);
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
