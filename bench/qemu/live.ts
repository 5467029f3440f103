import { parseArgs } from "node:util";
import { compareLive, type LiveGuest, type LivePlan } from "./live-comparison.ts";
import { formatLive, liveRowsOf } from "./live-result.ts";
import { chosen, counted, type Request, runProgram } from "./program.ts";
import { COMPRESSIONS } from "./sample.ts";

const USAGE = `usage: node bench/qemu/live.ts [--pairs 5] [--channels 2] [--compression none,auto]
         [--json] [--smoke]

Moves a guest of 1 GiB, half of it in use, that rewrites 64 MiB at 20 MiB/s, with QEMU's own live
migration, multifd on, and with this engine, turn and turn about: each time one that was freshly
booted, into a fresh QEMU and fresh memory. Throws unless the guest works on where it arrived, and
tells medians and ratios. QEMU compresses nothing.

It needs QEMU, a kernel and a static busybox for the guest, a compiler, unshare, ip and mount, and
the right to make namespaces: everything runs in some of its own, and ends with them. --json prints
a line per comparison; --smoke is small.
`;

/** The kernel takes some 60 MiB. */
const GUEST: LiveGuest = {
  memoryMib: 1024,
  work: { sizeMib: 64, rateMib: 20, usedMib: 384 },
};
const SMOKE_GUEST: LiveGuest = {
  memoryMib: 192,
  work: { sizeMib: 16, rateMib: 20, usedMib: 16 },
};

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
      pairs: { type: "string", default: "5" },
      channels: { type: "string", default: "2" },
      compression: { type: "string", default: "none,auto" },
      smoke: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  const plan: LivePlan = {
    guest: GUEST,
    compressions: chosen(values.compression, COMPRESSIONS),
    pairs: counted(values.pairs, "pairs"),
    warmups: 1,
    channels: counted(values.channels, "channels"),
  };
  const smoke = { guest: SMOKE_GUEST, pairs: 1, warmups: 0 };
  const { json: isJson, help: isHelp } = values;
  return { plan: values.smoke ? { ...plan, ...smoke } : plan, isJson, isHelp };
}
