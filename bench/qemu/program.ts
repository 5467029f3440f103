import { execFileSync } from "node:child_process";
import { currentCommit, describeMachine, type Machine } from "../machine.ts";
import { furnish, isEnclosed, runEnclosed } from "./enclosure.ts";
import { SOURCE_THREADS, type SourceThreads } from "./multifd.ts";

/** Where and how figures were measured. */
export interface Run {
  readonly command: string;
  readonly machine: Machine;
  readonly qemuVersion: string;
  readonly commit: string | null;
}

export interface Request {
  readonly isJson: boolean;
  readonly isHelp: boolean;
}

/** A program that compares this engine with QEMU's, in an enclosure. */
export interface Program<R extends Request> {
  /** Its file. */
  readonly path: string;
  /** As it is called from the folder of the project. */
  readonly name: string;
  readonly usage: string;
  /** Throws an Error with what is wrong. */
  readonly requestOf: (argv: readonly string[]) => R;
  /** Says each result as a line of JSON, or as text for people. */
  readonly compare: (
    request: R,
    say: (result: { record: object; text: string }) => void,
  ) => Promise<void>;
}

/** Returns the exit status. */
export async function runProgram<R extends Request>(
  { path, name, usage, requestOf, compare }: Program<R>,
  argv: readonly string[],
): Promise<number> {
  let request: R;
  try {
    request = requestOf(argv);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${usage}`);
    return 2;
  }
  if (request.isHelp) {
    process.stdout.write(usage);
    return 0;
  }
  if (!isEnclosed) return await runEnclosed(path, argv);
  furnish();
  const command = [`node ${name}`, ...argv].join(" ");
  const run = {
    command,
    machine: describeMachine(),
    qemuVersion: qemuVersion(),
    commit: currentCommit(),
  };
  if (!request.isJson) process.stdout.write(`${headOf(run)}\n\n`);
  await compare(request, ({ record, text }) => {
    process.stdout.write(`${request.isJson ? JSON.stringify({ ...record, ...run }) : text}\n`);
  });
  return 0;
}

/** Words of a list, each one of those that are known. */
export function chosen<T extends string>(text: string, known: readonly T[]): T[] {
  return text.split(",").map((word) => {
    const found = known.find((name) => name === word);
    if (found === undefined) throw new RangeError(`"${word}" is none of ${known.join(", ")}`);
    return found;
  });
}

/** What every comparison takes. */
export const COMMON_OPTIONS = {
  pairs: { type: "string", default: "5" },
  warmups: { type: "string", default: "1" },
  channels: { type: "string", default: "2" },
  threads: { type: "string", default: "ready" },
  smoke: { type: "boolean", default: false },
  json: { type: "boolean", default: false },
  help: { type: "boolean", default: false },
} as const;

/** How often, over how many channels, and with which threads of ours. */
export interface Turns {
  readonly pairs: number;
  /** Pairs that are not counted: they warm up what both use, such as caches of the disk. */
  readonly warmups: number;
  readonly channels: number;
  readonly threads: SourceThreads;
}

export function turnsOf(values: { [Name in keyof Turns]: string } & { smoke: boolean }): Turns {
  const channels = counted(values.channels, "channels");
  const [threads, ...more] = chosen(values.threads, SOURCE_THREADS);
  if (threads === undefined || more.length > 0) {
    throw new RangeError(`--threads takes one of ${SOURCE_THREADS.join(", ")}`);
  }
  if (values.smoke) return { pairs: 1, warmups: 0, channels, threads };
  const pairs = counted(values.pairs, "pairs");
  const warmups = values.warmups === "0" ? 0 : counted(values.warmups, "warmups");
  return { pairs, warmups, channels, threads };
}

function counted(text: string, what: string): number {
  if (!/^[1-9]\d{0,2}$/.test(text)) throw new RangeError(`"${text}" is no number of ${what}`);
  return Number(text);
}

function headOf({ command, machine, qemuVersion, commit }: Run): string {
  const { processor, cores, kernel, node } = machine;
  return `${command}\n${processor}, ${cores} cores, Linux ${kernel}, Node ${node}, ${qemuVersion}, commit ${commit}`;
}

function qemuVersion(): string {
  const text = execFileSync("qemu-system-x86_64", ["--version"], { encoding: "utf8" });
  return text.split("\n")[0]?.replace(/^QEMU emulator version /, "QEMU ") ?? "QEMU";
}
