import { assert } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import type { Report as Moved } from "../engine/statistics.ts";
import { type Benchmark, listed, median } from "./measure.ts";
import { Pair } from "./peer-process.ts";
import { type Limits, SlowRelay } from "./slow-relay.ts";

const SMOKE = { guestBytes: 32 * MIB, channels: 4, bytesPerSecond: 80 * MIB, runs: 1, warmups: 0 };

/** Which of the channels is slow, or is cut. */
const ODD = 2;
const SLOWNESS = 10;

/**
 * Channels that differ: a relay holds each of them to a rate of its own, so that the best that
 * anybody could do is known, the bytes of the guest over the sum of the rates. What is compared with
 * that is the total time of the report, from the first connection until the guest runs. One of the
 * channels is held to a tenth of the others' rate; or it is cut for good when it has carried half of
 * its share, and the best is that of the others from the start.
 */
export const uneven: Benchmark<typeof SMOKE> = {
  name: "uneven",
  about: "incompressible pages over channels of which one is slow, or is cut in the middle",
  smoke: SMOKE,
  real: { guestBytes: 768 * MIB, channels: 4, bytesPerSecond: 40 * MIB, runs: 3, warmups: 1 },

  async run(report, { guestBytes, channels, bytesPerSecond, runs, warmups }) {
    await using pair = new Pair();
    const { source, destination } = pair;
    await Promise.all([
      source.order("hold", { bytes: guestBytes, content: "random", seed: 1 }),
      destination.order("hold", { bytes: guestBytes, content: "zero", seed: 0 }),
    ]);
    const wanted = await source.order("digest");

    const move = async (limits: Limits, cuts: number): Promise<Moved> => {
      await destination.order("soil");
      const target = await destination.order("listen", {});
      await using relay = await SlowRelay.start(target, limits);
      const travel = await source.order("depart", relay.address, { channels });
      await destination.order("arrived");
      assert((await destination.order("digest")) === wanted, "every byte of the guest arrived");
      assert(relay.cuts === cuts, "what should be cut was");
      return travel.report;
    };

    const even = (): number => bytesPerSecond;
    const never = (): number => Number.POSITIVE_INFINITY;
    const slow = (channel: number): number => bytesPerSecond / (channel === ODD ? SLOWNESS : 1);
    const half = guestBytes / channels / 2;
    const idealMs = (rates: number): number => (guestBytes / bytesPerSecond / rates) * 1000;
    for (const { name, limits, cuts, ideal, goal } of [
      {
        name: "all alike",
        limits: { bytesPerSecond: even, cutAfterBytes: never },
        cuts: 0,
        ideal: idealMs(channels),
      },
      {
        name: "one of four at a tenth",
        limits: { bytesPerSecond: slow, cutAfterBytes: never },
        cuts: 0,
        ideal: idealMs(channels - 1 + 1 / SLOWNESS),
        goal: { atMost: 1.3 },
      },
      {
        name: "one of four cut in the middle",
        limits: {
          bytesPerSecond: even,
          cutAfterBytes: (channel: number) => (channel === ODD ? half : Number.POSITIVE_INFINITY),
        },
        cuts: 1,
        ideal: idealMs(channels - 1),
        goal: { atMost: 1.5 },
      },
    ]) {
      const ratios: number[] = [];
      for (let run = -warmups; run < runs; run += 1) {
        const { totalMs } = await move(limits, cuts);
        if (run >= 0) ratios.push(totalMs / ideal);
      }
      report({
        name: `${name}, total time / ideal`,
        value: median(ratios),
        unit: "",
        ...(goal === undefined ? {} : { goal }),
        detail: `${listed(ratios)} of ${ideal.toFixed(0)} ms`,
      });
    }
  },
};
