import type { Benchmark } from "./measure.ts";
import { reportComparison } from "./qemu/child.ts";

const SMOKE = {
  pairs: 1,
  warmups: 0,
  channels: 2,
  guestKib: 196_600,
  workingSetMib: 16,
  usedMib: 16,
};

/**
 * The working set is rewritten at 20 MiB/s, more is merely used; the kernel takes some 60 MiB. A size
 * as that of the small one survives QEMU; see `moveLiveWithQemu`.
 */
export const qemuLive: Benchmark<typeof SMOKE> = {
  name: "qemu-live",
  about: "a live, busy guest of QEMU, against QEMU's own multifd, into a fresh QEMU",
  suite: "real",
  smoke: SMOKE,
  real: { ...SMOKE, pairs: 3, warmups: 1, guestKib: 1_048_576, workingSetMib: 64, usedMib: 384 },

  async run(report, parameters) {
    const { pairs, warmups, channels, guestKib, workingSetMib, usedMib } = parameters;
    const words = [
      ...["--compression", "none,auto,auto-for-time"],
      ...["--pairs", `${pairs}`, "--warmups", `${warmups}`, "--channels", `${channels}`],
      ...["--size", `${guestKib}KiB`, "--working-set", `${workingSetMib}MiB`],
      ...["--used", `${usedMib}MiB`],
    ];
    await reportComparison("live.ts", words, report);
  },
};
