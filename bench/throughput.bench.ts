import { assert, must } from "../base/assert.ts";
import { GIB, MIB } from "../base/units.ts";
import { FRAME_BYTES } from "../workers/frame-length.ts";
import { type Benchmark, gbps, listed, median } from "./measure.ts";
import type { Travel } from "./peer.ts";
import { Pair } from "./peer-process.ts";
import type { PumpLoad } from "./pump.ts";
import { PAGE_BYTES } from "./workloads.ts";

const SMOKE = { guestBytes: 8 * MIB, channels: 2, pairs: 1, warmups: 0 };

/** One transfer: how long, and the processor's time at both ends. */
interface Sample {
  readonly elapsedMs: number;
  readonly cpuMs: number;
}

/**
 * Incompressible pages between two processes on one machine, against a pump that only writes and
 * reads the same sockets (`pump.ts`), turn and turn about in one run.
 *
 * Compared are the times in which all bytes of the guest are moved and known to have arrived. The
 * pump's begins with the first write and ends when every reader has confirmed its last byte. The
 * engine's is round 1 of the report: from the first dispatch until a fence on every channel says
 * that all is in guest memory. Threads and connections of both ends are there before, in both. The
 * engine goes once by threads that were started for this migration, as by the command, and once by
 * threads that have served one before (`ReadyThreads`), as in a host that lives on: V8 has compiled
 * what they do. Processor time of the pump is its threads'; the engine's is all that both processes used,
 * main threads included, in the phases in which pages move before the pause. What comes before these,
 * such as connecting, is not counted.
 *
 * There are two pumps. One goes through the very memory that the guest has, warm at both ends: what
 * the machine allows when the bytes are a guest's. The other moves one small buffer, which never
 * leaves the cache at either end: it may outrun any pump of real memory, and so the goal.
 */
export const throughput: Benchmark<typeof SMOKE> = {
  name: "throughput",
  about: "incompressible pages over TCP loopback against a bare descriptor pump",
  smoke: SMOKE,
  real: { guestBytes: 2 * GIB, channels: 2, pairs: 7, warmups: 1 },

  async run(report, { guestBytes, channels, pairs, warmups }) {
    await using pair = new Pair();
    const { source, destination } = pair;
    const bytes = guestBytes;
    await Promise.all([
      source.order("hold", { bytes, content: "random", seed: 1 }),
      destination.order("hold", { bytes, content: "zero", seed: 0 }),
    ]);
    const wanted = await source.order("digest");
    const pumps: Sample[] = [];
    const memoryPumps: Sample[] = [];
    const engines: Sample[] = [];
    const keptEngines: Sample[] = [];
    await source.order("keepThreads", "source", channels);
    await destination.order("keepThreads", "destination", channels);
    const load = { connections: channels, bytes, pieceBytes: FRAME_BYTES.precopy.straight };
    for (let run = -warmups; run < pairs; run += 1) {
      const pumped = await pumpOnce(pair, { ...load, isThroughMemory: false });
      const pumpedMemory = await pumpOnce(pair, { ...load, isThroughMemory: true });
      const moved = await migrateOnce(pair, { guestBytes, channels, isKept: false });
      assert((await destination.order("digest")) === wanted, "every byte of the guest arrived");
      const movedByKept = await migrateOnce(pair, { guestBytes, channels, isKept: true });
      assert((await destination.order("digest")) === wanted, "every byte of the guest arrived");
      if (run < 0) continue;
      pumps.push(pumped);
      memoryPumps.push(pumpedMemory);
      engines.push(moved);
      keptEngines.push(movedByKept);
    }
    const rate = ({ elapsedMs }: Sample): number => gbps(guestBytes, elapsedMs);
    const cost = ({ cpuMs }: Sample): number => cpuMs / 1000 / (guestBytes / 1e9);
    const ends = [
      { name: "engine", samples: engines },
      { name: "engine, kept threads", samples: keptEngines },
    ];
    const floors = [
      { name: "pump through memory", samples: memoryPumps },
      { name: "pump", samples: pumps },
    ];
    for (const { name, samples } of [...floors, ...ends]) {
      const rates = samples.map(rate);
      report({ name, value: median(rates), unit: "GB/s", detail: listed(rates) });
      report({ name: `${name}: processor`, value: median(samples.map(cost)), unit: "s/GB" });
    }
    for (const floor of floors) {
      for (const { name, samples } of ends) {
        const pairsOf = (of: (sample: Sample) => number): number[] =>
          samples.map((sample, run) => of(sample) / of(must(floor.samples[run], "runs are pairs")));
        report({
          name: `${name} / ${floor.name}`,
          value: median(samples.map(rate)) / median(floor.samples.map(rate)),
          unit: "",
          goal: { atLeast: 0.8 },
          detail: `of medians; by pair ${listed(pairsOf(rate))}`,
        });
        const costs = pairsOf(cost);
        report({
          name: `${name} / ${floor.name}: processor`,
          value: median(costs),
          unit: "",
          detail: `by pair ${listed(costs)}`,
        });
      }
    }
  },
};

async function pumpOnce({ source, destination }: Pair, load: PumpLoad): Promise<Sample> {
  const address = await destination.order("pumpIn", load);
  const out = await source.order("pumpOut", address, load);
  const taken = await destination.order("pumpedIn");
  return { elapsedMs: out.elapsedMs, cpuMs: out.cpuMs + taken.cpuMs };
}

async function migrateOnce(
  { source, destination }: Pair,
  { guestBytes, channels, isKept }: { guestBytes: number; channels: number; isKept: boolean },
): Promise<Sample> {
  await Promise.all([
    source.order("useKept", isKept),
    destination.order("useKept", isKept),
    destination.order("soil"),
  ]);
  const address = await destination.order("listen", {});
  const out: Travel = await source.order("depart", address, { channels });
  const taken = await destination.order("arrived");
  const { rounds, pages } = out.report;
  assert(pages.raw === guestBytes / PAGE_BYTES, "every page went as it is");
  const first = must(rounds[0], "a migration has a round");
  return { elapsedMs: first.elapsedMs, cpuMs: out.cpuMs + taken.cpuMs };
}
