import { parseArgs } from "node:util";
import { MIB, parseSize } from "../../base/units.ts";
import { compareAll, type Plan } from "./comparison.ts";
import { MEMORY_KINDS } from "./enclosure.ts";
import { rowsOf } from "./figures.ts";
import { GUESTS } from "./guests.ts";
import { COMMON_OPTIONS, chosen, type Request, runProgram, turnsOf } from "./program.ts";
import { FIGURES, formatComparison } from "./result.ts";
import { COMPRESSIONS } from "./sample.ts";

const USAGE = `usage: node bench/qemu/compare.ts [--pairs 5] [--warmups 1] [--channels 2] [--guests mixed,linux]
         [--memory small,huge] [--compression none,zstd,auto] [--size 2GiB] [--threads ready|started]
         [--json] [--smoke]

Moves the RAM of a stopped guest with QEMU's own migration, multifd on, and with this engine, turn
and turn about, each time into fresh memory, compares what arrived with what was sent, and tells
medians and ratios. The source's threads are ready when it begins, as a host that embeds the engine
can keep them, or start then, as the command's do. With auto, which QEMU does not have, QEMU sends
memory as it is. Otherwise a bare pump reads and moves the same memory, as it is or by the same codec.

It needs qemu-system-x86_64, unshare, ip and mount, and the right to make namespaces: everything
runs in some of its own, and ends with them. --json prints a line per comparison; --smoke is small.
`;

const SMOKE = { guests: ["mixed"], memories: ["small"], sizeBytes: 48 * MIB } as const;

interface CompareRequest extends Request {
  readonly plan: Plan;
}

process.exitCode = await runProgram<CompareRequest>(
  {
    path: import.meta.filename,
    name: "bench/qemu/compare.ts",
    usage: USAGE,
    requestOf,
    async compare({ plan }, say) {
      await compareAll(plan, (found) => {
        const record = { bench: "qemu", rows: rowsOf(FIGURES, found), ...found };
        say({ record, text: formatComparison(found) });
      });
    },
  },
  process.argv.slice(2),
);

function requestOf(argv: readonly string[]): CompareRequest {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      ...COMMON_OPTIONS,
      guests: { type: "string", default: "mixed,linux" },
      memory: { type: "string", default: "small,huge" },
      compression: { type: "string", default: "none,zstd" },
      size: { type: "string" },
    },
  });
  const plan: Plan = {
    guests: chosen(values.guests, Object.keys(GUESTS) as Plan["guests"]),
    memories: chosen(values.memory, Object.keys(MEMORY_KINDS) as Plan["memories"]),
    compressions: chosen(values.compression, COMPRESSIONS),
    ...turnsOf(values),
    ...(values.size !== undefined && { sizeBytes: parseSize(values.size) }),
  };
  const { json: isJson, help: isHelp } = values;
  return { plan: values.smoke ? { ...plan, ...SMOKE } : plan, isJson, isHelp };
}
