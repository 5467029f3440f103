import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import { type Benchmark, listed, median } from "./measure.ts";
import { Pair } from "./peer-process.ts";

const SMOKE = { guestBytes: 4 * MIB, channels: 2, pairs: 1, moves: 2 };

/**
 * What a small migration takes whose threads served another one before (`ReadyThreads` at both ends),
 * against one that starts its own, turn and turn about: by the clock from when the destination is told
 * to listen until both ends are done, and in processor time of both processes.
 */
export const threads: Benchmark<typeof SMOKE> = {
  name: "threads",
  about: "a small migration by threads that are kept, against threads of its own",
  smoke: SMOKE,
  real: { guestBytes: 64 * MIB, channels: 2, pairs: 5, moves: 10 },

  async run(report, { guestBytes, channels, pairs, moves }) {
    await using pair = new Pair();
    const { source, destination } = pair;
    await Promise.all([
      source.order("hold", { bytes: guestBytes, content: "random", seed: 1 }),
      destination.order("hold", { bytes: guestBytes, content: "zero", seed: 0 }),
    ]);
    const wanted = await source.order("digest");
    const cpuMs = async (): Promise<number> =>
      (await source.order("cpuMs")) + (await destination.order("cpuMs"));

    const perMove = async (kept: number): Promise<{ ms: number; cpuMs: number }> => {
      await source.order("keepThreads", "source", kept);
      await destination.order("keepThreads", "destination", kept);
      const times: number[] = [];
      let beforeMs = 0;
      // The first one is not counted: it is what the others come after.
      for (let move = -1; move < moves; move += 1) {
        await destination.order("soil");
        if (move === 0) beforeMs = await cpuMs();
        const startMs = nowMs();
        const address = await destination.order("listen", {});
        await source.order("depart", address, { channels });
        await destination.order("arrived");
        if (move >= 0) times.push(nowMs() - startMs);
      }
      const spentMs = (await cpuMs()) - beforeMs;
      assert((await destination.order("digest")) === wanted, "every byte arrived");
      return { ms: median(times), cpuMs: spentMs / moves };
    };

    const [kept, own]: Record<"ms" | "cpuMs", number>[][] = [[], []];
    for (let turn = 0; turn < pairs; turn += 1) {
      own?.push(await perMove(0));
      kept?.push(await perMove(channels));
    }
    for (const [what, key] of [
      ["by the clock", "ms"],
      ["processor, both ends", "cpuMs"],
    ] as const) {
      const [ofKept, ofOwn] = [kept, own].map((each) => (each ?? []).map((one) => one[key]));
      for (const [name, values] of [
        ["threads of its own", ofOwn ?? []],
        ["kept threads", ofKept ?? []],
      ] as const) {
        report({
          name: `${name}, ${what}`,
          value: median(values),
          unit: "ms",
          detail: listed(values),
        });
      }
      report({
        name: `kept / own, ${what}`,
        value: median(ofKept ?? []) / median(ofOwn ?? []),
        unit: "",
      });
    }
  },
};
