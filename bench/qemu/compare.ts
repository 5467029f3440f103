import { execFileSync } from "node:child_process";
import { parseArgs } from "node:util";
import { MIB, parseSize } from "../../base/units.ts";
import { currentCommit, describeMachine } from "../machine.ts";
import { type Comparison, compareAll, type Plan } from "./comparison.ts";
import { furnish, isEnclosed, MEMORY_KINDS, runEnclosed } from "./enclosure.ts";
import { GUESTS } from "./guests.ts";
import { formatComparison, rowsOf } from "./result.ts";
import { COMPRESSIONS } from "./sample.ts";

const USAGE = `usage: node bench/qemu/compare.ts [--pairs 5] [--channels 2] [--guests mixed,linux]
         [--memory small,huge] [--compression none,zstd,auto] [--size 2GiB] [--json] [--smoke]

Moves the RAM of a stopped guest with QEMU's own migration, multifd on, and with this engine, turn
and turn about, each time into fresh memory, compares what arrived with what was sent, and tells
medians and ratios. With auto, which QEMU does not have, QEMU sends memory as it is.

It needs qemu-system-x86_64, unshare, ip and mount, and the right to make namespaces: everything
runs in some of its own, and ends with them. --json prints a line per comparison; --smoke is small.
`;

const SMOKE = { guests: ["mixed"], memories: ["small"], pairs: 1, sizeBytes: 48 * MIB } as const;

process.exitCode = await main(process.argv.slice(2));

async function main(argv: readonly string[]): Promise<number> {
  let request: Request;
  try {
    request = requestOf(argv);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${USAGE}`);
    return 2;
  }
  if (request.isHelp) {
    process.stdout.write(USAGE);
    return 0;
  }
  if (!isEnclosed) return await runEnclosed(import.meta.filename, argv);
  furnish();
  const command = ["node bench/qemu/compare.ts", ...argv].join(" ");
  const run = { command, machine: describeMachine(), qemu: qemuVersion(), commit: currentCommit() };
  if (!request.isJson) process.stdout.write(`${headOf(run)}\n\n`);
  await compareAll(request.plan, (found) => {
    const line = request.isJson ? JSON.stringify(recordOf(found, run)) : formatComparison(found);
    process.stdout.write(`${line}\n`);
  });
  return 0;
}

interface Request {
  readonly plan: Plan;
  readonly isJson: boolean;
  readonly isHelp: boolean;
}

function requestOf(argv: readonly string[]): Request {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      pairs: { type: "string", default: "5" },
      channels: { type: "string", default: "2" },
      guests: { type: "string", default: "mixed,linux" },
      memory: { type: "string", default: "small,huge" },
      compression: { type: "string", default: "none,zstd" },
      size: { type: "string" },
      smoke: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  const plan: Plan = {
    guests: chosen(values.guests, Object.keys(GUESTS) as Plan["guests"]),
    memories: chosen(values.memory, Object.keys(MEMORY_KINDS) as Plan["memories"]),
    compressions: chosen(values.compression, COMPRESSIONS),
    pairs: counted(values.pairs, "pairs"),
    channels: counted(values.channels, "channels"),
    ...(values.size !== undefined && { sizeBytes: parseSize(values.size) }),
  };
  const { json: isJson, help: isHelp } = values;
  return { plan: values.smoke ? { ...plan, ...SMOKE } : plan, isJson, isHelp };
}

function chosen<T extends string>(text: string, known: readonly T[]): T[] {
  return text.split(",").map((word) => {
    const found = known.find((name) => name === word);
    if (found === undefined) throw new RangeError(`"${word}" is none of ${known.join(", ")}`);
    return found;
  });
}

function counted(text: string, what: string): number {
  if (!/^[1-9]\d{0,2}$/.test(text)) throw new RangeError(`"${text}" is no number of ${what}`);
  return Number(text);
}

interface Run {
  readonly command: string;
  readonly machine: ReturnType<typeof describeMachine>;
  readonly qemu: string;
  readonly commit: string | null;
}

function headOf({ command, machine, qemu, commit }: Run): string {
  const { processor, cores, kernel, node } = machine;
  return `${command}\n${processor}, ${cores} cores, Linux ${kernel}, Node ${node}, ${qemu}, commit ${commit}`;
}

function recordOf(found: Comparison, run: Run): object {
  return { bench: "qemu", rows: rowsOf(found), ...found, ...run };
}

function qemuVersion(): string {
  const text = execFileSync("qemu-system-x86_64", ["--version"], { encoding: "utf8" });
  return text.split("\n")[0]?.replace(/^QEMU emulator version /, "QEMU ") ?? "QEMU";
}
