import { assert } from "../base/assert.ts";
import { GIB, MIB } from "../base/units.ts";
import { type Benchmark, gbps, listed, median } from "./measure.ts";
import { Pair } from "./peer-process.ts";
import { PAGE_BYTES } from "./workloads.ts";

const SMOKE = { guestBytes: 8 * MIB, channels: 2, runs: 1, warmups: 0 };

const GOAL_GBPS = 8;

/**
 * A guest of which every page was written, with zeros: the source must look at all of it, and
 * nothing but the table of pages travels. Per core means bytes of guest memory by the processor
 * time that both processes, with all of their threads, used while pages moved.
 *
 * The destination's memory was never written, as that of a process that just started: it need not
 * be touched. Memory in use must be read there as well before it may be left alone, so a second
 * figure tells of that; two ends share the goal's time then, and it has none.
 */
export const zero: Benchmark<typeof SMOKE> = {
  name: "zero",
  about: "a guest of zero pages over TCP loopback, in bytes of guest memory by processor time",
  smoke: SMOKE,
  real: { guestBytes: 8 * GIB, channels: 2, runs: 5, warmups: 1 },

  async run(report, { guestBytes, channels, runs, warmups }) {
    await using pair = new Pair();
    const { source, destination } = pair;
    await source.order("hold", { bytes: guestBytes, content: "zero", seed: 0 });
    for (const pristine of [true, false]) {
      const perCore: number[] = [];
      const elapsed: number[] = [];
      for (let run = -warmups; run < runs; run += 1) {
        if (pristine) await destination.order("holdFresh", guestBytes);
        else await destination.order("hold", { bytes: guestBytes, content: "zero", seed: 0 });
        const { elapsedMs, cpuMs } = await migrateOnce(pair, { guestBytes, channels, pristine });
        if (run < 0) continue;
        perCore.push(gbps(guestBytes, cpuMs));
        elapsed.push(gbps(guestBytes, elapsedMs));
      }
      const where = pristine ? "fresh memory" : "used memory";
      report({
        name: `${where}, per core of both ends`,
        value: median(perCore),
        unit: "GB/s",
        ...(pristine ? { goal: { atLeast: GOAL_GBPS } } : {}),
        detail: listed(perCore),
      });
      const detail = listed(elapsed);
      report({ name: `${where}, by the clock`, value: median(elapsed), unit: "GB/s", detail });
    }
  },
};

async function migrateOnce(
  { source, destination }: Pair,
  options: { guestBytes: number; channels: number; pristine: boolean },
): Promise<{ elapsedMs: number; cpuMs: number }> {
  const { guestBytes, channels, pristine } = options;
  const address = await destination.order("listen", { pristine });
  const out = await source.order("depart", address, { channels });
  const taken = await destination.order("arrived");
  const { pages, rounds } = out.report;
  assert(pages.zero === guestBytes / PAGE_BYTES, "every page went as zero");
  assert(pages.untouched === (pristine ? pages.zero : 0), "only fresh memory is left alone");
  const elapsedMs = rounds[0]?.elapsedMs ?? 0;
  assert(elapsedMs > 0, "a migration has a round");
  return { elapsedMs, cpuMs: out.cpuMs + taken.cpuMs };
}
