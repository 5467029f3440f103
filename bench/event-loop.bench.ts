import { assert } from "../base/assert.ts";
import { GIB, MIB } from "../base/units.ts";
import type { Benchmark } from "./measure.ts";
import { Pair } from "./peer-process.ts";

const SMOKE = {
  guestBytes: 32 * MIB,
  workingSetBytes: 4 * MIB,
  dirtyBytesPerSecond: 10 * MIB,
  vcpus: 1,
  channels: 2,
};

const GOAL_MS = 20;

/**
 * How long the main threads of both ends keep their event loops waiting while a guest that keeps
 * writing moves: a host serves its other work there. Node's own sampler looks every millisecond; a
 * delay is what a sample took beyond that. Watched is the whole migration, threads starting and
 * ending included.
 */
export const eventLoop: Benchmark<typeof SMOKE> = {
  name: "event-loop",
  about: "event-loop delay of the main threads while a busy guest moves",
  smoke: SMOKE,
  real: {
    guestBytes: 2 * GIB,
    workingSetBytes: 256 * MIB,
    dirtyBytesPerSecond: 200 * MIB,
    vcpus: 2,
    channels: 2,
  },

  async run(report, { channels, ...size }) {
    await using pair = new Pair();
    const { source, destination } = pair;
    await source.order("holdBusy", size);
    await Promise.all([source.order("watchLoop"), destination.order("watchLoop")]);
    const address = await destination.order("listenBusy", { vcpus: size.vcpus });
    const out = await source.order("depart", address, { channels });
    await destination.order("arrived");
    const delays = {
      source: await source.order("loopDelay"),
      destination: await destination.order("loopDelay"),
    };
    assert(out.report.rounds.length > 1, "the guest wrote while it moved");
    assert((await destination.order("problems")).length === 0, "the guest arrived undamaged");
    for (const [name, { p50Ms, p99Ms, maxMs, samples }] of Object.entries(delays)) {
      assert(samples > 0, "the loop was looked at");
      report({
        name: `${name}, p99`,
        value: p99Ms,
        unit: "ms",
        goal: { atMost: GOAL_MS },
        detail: `p50 ${p50Ms.toFixed(2)}, max ${maxMs.toFixed(1)}, ${samples} samples`,
      });
    }
  },
};
