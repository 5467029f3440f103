import { auto } from "./auto.bench.ts";
import { bitmap } from "./bitmap.bench.ts";
import { cache } from "./cache.bench.ts";
import { codecs } from "./codecs.bench.ts";
import { delta } from "./delta.bench.ts";
import { deltaLink } from "./delta-link.bench.ts";
import { dispatch } from "./dispatch.bench.ts";
import { eventLoop } from "./event-loop.bench.ts";
import { frames } from "./frames.bench.ts";
import { hang } from "./hang.bench.ts";
import { kernels } from "./kernels.bench.ts";
import { looks } from "./looks.bench.ts";
import type { Benchmark } from "./measure.ts";
import { memory } from "./memory.bench.ts";
import { postcopy } from "./postcopy.bench.ts";
import { qemu } from "./qemu.bench.ts";
import { qemuLive } from "./qemu-live.bench.ts";
import { recovery } from "./recovery.bench.ts";
import { scan } from "./scan.bench.ts";
import { threads } from "./threads.bench.ts";
import { throughput } from "./throughput.bench.ts";
import { uneven } from "./uneven.bench.ts";
import { zero } from "./zero.bench.ts";

/** Every benchmark there is: whole migrations first, then what they are made of. */
export const BENCHMARKS: readonly Benchmark[] = [
  throughput,
  zero,
  scan,
  uneven,
  postcopy,
  recovery,
  memory,
  eventLoop,
  threads,
  hang,
  deltaLink,
  auto,
  qemu,
  qemuLive,
  frames,
  dispatch,
  looks,
  bitmap,
  kernels,
  delta,
  cache,
  codecs,
];
