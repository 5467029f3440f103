import { assert } from "../base/assert.ts";
import { GIB, MIB } from "../base/units.ts";
import type { Benchmark, Report } from "./measure.ts";
import { Pair, type PeerProcess } from "./peer-process.ts";

const SMOKE = { guestBytes: 8 * MIB, channelsMax: 2 };

const GOAL_MIB = 150;
const GOAL_CHANNEL_MIB = 24;

/**
 * What a process holds besides the guest: the most that was resident at once during a migration
 * (`VmHWM`), less the guest's memory, all of which is resident before. It counts all there is, also
 * Node and the benchmark itself. Each figure is of two processes that do nothing else.
 */
export const memory: Benchmark<typeof SMOKE> = {
  name: "memory",
  about: "resident memory beyond the guest's, at its peak, for 1, 4, 8 … channels",
  smoke: SMOKE,
  real: { guestBytes: GIB, channelsMax: 8 },

  async run(report, { guestBytes, channelsMax }) {
    for (const channels of [1, 2, 4, 8, 16, 32, 64].filter((count) => count <= channelsMax)) {
      await migrate(report, { guestBytes, channels });
    }
  },
};

async function migrate(
  report: Report,
  { guestBytes, channels }: { guestBytes: number; channels: number },
): Promise<void> {
  await using pair = new Pair();
  const { source, destination } = pair;
  await Promise.all([
    source.order("hold", { bytes: guestBytes, content: "random", seed: 1 }),
    destination.order("hold", { bytes: guestBytes, content: "zero", seed: 0 }),
  ]);
  const wanted = await source.order("digest");
  const ends: readonly [string, PeerProcess][] = [
    ["source", source],
    ["destination", destination],
  ];
  const residentBytes = await Promise.all(ends.map(([, peer]) => peer.order("resetPeak")));
  assert(
    residentBytes.every((bytes) => bytes >= guestBytes),
    "the guest's memory is resident before",
  );
  const address = await destination.order("listen", {});
  await source.order("depart", address, { channels });
  await destination.order("arrived");
  const peakBytes = await Promise.all(ends.map(([, peer]) => peer.order("peakBytes")));
  assert((await destination.order("digest")) === wanted, "every byte of the guest arrived");
  for (const [index, [name]] of ends.entries()) {
    const beyondMib = ((peakBytes[index] ?? Number.NaN) - guestBytes) / MIB;
    const idleMib = ((residentBytes[index] ?? Number.NaN) - guestBytes) / MIB;
    report({
      name: `${name}, channels: ${channels}`,
      value: beyondMib,
      unit: "MiB",
      goal: { atMost: GOAL_MIB + GOAL_CHANNEL_MIB * channels },
      detail: `${idleMib.toFixed(0)} MiB before it began`,
    });
  }
}
