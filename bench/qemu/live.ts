import { parseArgs } from "node:util";
import { KIB, MIB, parseSize } from "../../base/units.ts";
import { compareLive, type LivePlan } from "./live-comparison.ts";
import { LIVE_WAYS, type LiveWay } from "./live-move.ts";
import { formatLive, liveRowsOf } from "./live-result.ts";
import { COMMON_OPTIONS, chosen, type Request, runProgram, turnsOf } from "./program.ts";

const USAGE = `usage: node bench/qemu/live.ts [--pairs 5] [--warmups 1] [--channels 2]
         [--compression none,auto,auto-for-time] [--size 1GiB] [--used 384MiB]
         [--working-set 64MiB] [--noise 25] [--threads ready|started] [--json] [--smoke]

Moves a guest, half of whose memory is in use, that rewrites its working set at 20 MiB/s, with
QEMU's own live migration, multifd on, and with this engine, turn and turn about: each time one that
was freshly booted, into a fresh QEMU and fresh memory. Throws unless our guest works on where it
arrived, and tells medians and ratios. QEMU compresses nothing; of a hundred pages --noise would not
shrink: with 25, zstd makes half of it, as of a booted Linux with a page cache (compare.ts).
The source's threads are ready when it begins, as a host that embeds the engine can keep them,
or start then, as the command's do. auto-for-time is auto with --auto-extra-time 0%. QEMU 7.2's own migration breaks an emulated
guest of most sizes, which is told; one of --size 1048568KiB survives.

It needs QEMU, a kernel and a static busybox for the guest, a compiler, unshare, ip and mount, and
the right to make namespaces: everything runs in some of its own, and ends with them. --json prints
a line per comparison; --smoke is small.
`;

/** The kernel takes some 60 MiB. */
const SIZES = { size: "1GiB", used: "384MiB", "working-set": "64MiB" };
/** Of a size that survives QEMU. */
const SMOKE_SIZES = { size: "196600KiB", used: "16MiB", "working-set": "16MiB" };
const RATE_MIB = 20;
const WAYS: readonly LiveWay[] = ["none", "auto", "auto-for-time"];

/** What QEMU rounds memory to. */
const GRAIN_BYTES = 8 * KIB;

interface LiveRequest extends Request {
  readonly plan: LivePlan;
}

process.exitCode = await runProgram<LiveRequest>(
  {
    path: import.meta.filename,
    name: "bench/qemu/live.ts",
    usage: USAGE,
    requestOf,
    async compare({ plan }, say) {
      for (const found of await compareLive(plan)) {
        const record = { bench: "qemu-live", rows: liveRowsOf(found), ...found };
        say({ record, text: formatLive(found) });
      }
    },
  },
  process.argv.slice(2),
);

function requestOf(argv: readonly string[]): LiveRequest {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      ...COMMON_OPTIONS,
      compression: { type: "string", default: WAYS.join() },
      size: { type: "string", default: SIZES.size },
      noise: { type: "string", default: "25" },
      used: { type: "string", default: SIZES.used },
      "working-set": { type: "string", default: SIZES["working-set"] },
    },
  });
  const sizes = values.smoke ? SMOKE_SIZES : values;
  const memoryMib = mibOf(sizes.size, GRAIN_BYTES);
  const work = { sizeMib: mibOf(sizes["working-set"]), usedMib: mibOf(sizes.used) };
  const plan: LivePlan = {
    guest: {
      memoryMib,
      work: { ...work, noisePercent: percentOf(values.noise), rateMib: RATE_MIB },
    },
    compressions: chosen(values.compression, Object.keys(LIVE_WAYS) as LiveWay[]),
    ...turnsOf(values),
  };
  return { plan, isJson: values.json, isHelp: values.help };
}

function percentOf(text: string): number {
  if (!/^(?:\d{1,2}|100)$/.test(text)) throw new RangeError(`"${text}" is no percentage`);
  return Number(text);
}

function mibOf(text: string, grainBytes: number = MIB): number {
  const bytes = parseSize(text);
  if (bytes % grainBytes !== 0)
    throw new RangeError(`"${text}" is not made of ${grainBytes} bytes`);
  return bytes / MIB;
}
