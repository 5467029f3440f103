import type { Benchmark } from "./measure.ts";
import { reportComparison } from "./qemu/child.ts";

const SMOKE = { pairs: 1, warmups: 0, channels: 2, guestMib: 48 };

/** `bench/qemu/compare.ts` has more kinds of guests and memory. */
export const qemu: Benchmark<typeof SMOKE> = {
  name: "qemu",
  about: "RAM of a stopped guest, against QEMU's own multifd: zeros, text and noise, fresh memory",
  suite: "real",
  smoke: SMOKE,
  real: { ...SMOKE, pairs: 3, warmups: 1, guestMib: 2048 },

  async run(report, { pairs, warmups, channels, guestMib }) {
    const words = [
      ...["--guests", "mixed", "--memory", "small", "--compression", "none,zstd"],
      ...["--pairs", `${pairs}`, "--warmups", `${warmups}`, "--channels", `${channels}`],
      ...["--size", `${guestMib}MiB`],
    ];
    await reportComparison("compare.ts", words, report);
  },
};
