import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { assert, must } from "../base/assert.ts";
import { GIB, KIB, MIB } from "../base/units.ts";
import { type Benchmark, gbps, listed, median } from "./measure.ts";
import { Pair } from "./peer-process.ts";
import { PAGE_BYTES } from "./workloads.ts";

const SMOKE = {
  guestBytes: 64 * MIB,
  channels: 2,
  runs: 1,
  faults: 50,
  quietMs: 100,
  warmups: 0,
};

const PERCENTS = [
  ["p50", 0.5],
  ["p99", 0.99],
] as const;

/** Between two pages that a guest waits for while channels are busy. */
const PAUSE_MS = 0.2;

const PUMP_PIECE_BYTES = 512 * KIB;

/** Threads are new for each migration, and V8 compiles what they do again and again by and by. */
const WARM_FAULTS = 1000;

/**
 * How long a guest waits for a page in post-copy, while all of its memory is still to come, and what
 * that costs the memory that comes by itself.
 *
 * All pages are dirty again when the guest goes over, and a thread at the destination touches them in
 * no order, one after the other, as a vCPU would. Compared is the time of the same request and a page
 * back between two threads of two processes that do nothing else, each blocked in the kernel, measured
 * just before in the same run: `fault-floor.ts`. They are on two processors, as those of two hosts are:
 * left alone the scheduler has them on one in some runs, where they take about half as long. "Saturated" is
 * with two bulk channels that send as fast as they can; "quiet" with them held to next to nothing.
 *
 * Threads are new for each migration and have rehearsed before it, as those of a host that is ready for a
 * guest (`ReadyThreads`, `prepareFaults`). "Unprepared" is with threads that start with it.
 *
 * Also told is what that bare request and answer takes beside two bare pumps (`pump.ts`), which is what the
 * scheduler makes of it when nothing of the engine runs.
 *
 * The background's rate is that of the round that follows the guest, when nobody touches a page, and it
 * is compared with that of the first round of the same migration, before the guest paused.
 */
export const postcopy: Benchmark<typeof SMOKE> = {
  name: "postcopy",
  about: "page faults on the priority lane against bare request and answer, and the background",
  smoke: SMOKE,
  real: {
    guestBytes: 1 * GIB,
    channels: 2,
    runs: 5,
    faults: 2000,
    quietMs: 3000,
    warmups: 1,
  },

  async run(report, { guestBytes, channels, runs, faults, quietMs, warmups }) {
    await using pair = new Pair();
    const { source, destination } = pair;
    await Promise.all([
      source.order("hold", { bytes: guestBytes, content: "random", seed: 1 }),
      destination.order("hold", { bytes: guestBytes, content: "zero", seed: 0 }),
    ]);
    const { apart, together } = placements();
    const floors: number[] = [];
    const sharedFloors: number[] = [];
    const busyFloors: number[] = [];
    const busy: number[][] = [];
    const huge: number[][] = [];
    const quiet: number[][] = [];
    const unprepared: number[][] = [];
    const rates: number[] = [];

    const move = async (
      what: {
        bytes: number;
        pageBytes: number;
        faults: number;
        pauseMs: number;
        quietMs: number;
      },
      ready = channels,
    ) => {
      const wanted = await source.order("digest", what.bytes);
      await destination.order("soil");
      const address = await destination.order("listenToFaults", what, ready);
      const options = { channels, postcopy: "after-rounds" } as const;
      const travel = await source.order("departDirty", address, what, options, ready);
      await destination.order("arrived");
      assert((await destination.order("digest", what.bytes)) === wanted, "every byte arrived");
      return { times: await destination.order("faultTimes"), rounds: travel.report.rounds };
    };

    const plain = { bytes: guestBytes, pageBytes: PAGE_BYTES, faults: 0, pauseMs: 0, quietMs: 0 };
    const touched = { ...plain, faults, pauseMs: PAUSE_MS };
    for (let run = -warmups; run < runs; run += 1) {
      const floor = await floorOnce(pair, { count: faults, on: apart });
      const sharedFloor =
        together === ANYWHERE ? [] : await floorOnce(pair, { count: faults, on: together });
      const busyFloor = await floorBesidePumps(pair, {
        count: faults,
        channels,
        bytes: guestBytes,
      });
      const inBulk = await move(touched);
      const inHuge = await move({ ...touched, pageBytes: 2 * MIB });
      const alone = await move({ ...touched, pauseMs: 0, quietMs });
      const notReady = await move({ ...touched, pauseMs: 0, quietMs }, 0);
      const { rounds } = await move(plain);
      if (run < 0) continue;
      floors.push(...floor);
      sharedFloors.push(...sharedFloor);
      busyFloors.push(...busyFloor);
      busy.push(inBulk.times);
      huge.push(inHuge.times);
      quiet.push(alone.times);
      unprepared.push(notReady.times);
      const [first, rest] = [must(rounds[0], "a round"), must(rounds[1], "what followed")];
      assert(rest.sentBytes > 0.9 * guestBytes, "all memory follows the guest");
      rates.push(gbps(rest.sentBytes, rest.elapsedMs) / gbps(first.sentBytes, first.elapsedMs));
    }
    const floorOf = (share: number): number => quantile(floors, share);
    report({
      name: "floor, p50",
      value: floorOf(0.5),
      unit: "us",
      detail: `${floors.length} pages, ${apart === ANYWHERE ? "no taskset: on any processor" : "each end on a processor of its own"}`,
    });
    report({ name: "floor, p99", value: floorOf(0.99), unit: "us" });
    if (sharedFloors.length > 0) {
      const us = quantile(sharedFloors, 0.5);
      report({
        name: "floor, both ends on one processor, p50 / floor's",
        value: us / floorOf(0.5),
        unit: "",
        detail: `${us.toFixed(1)} us, of ${sharedFloors.length} pages`,
      });
    }
    for (const [percent, share] of PERCENTS) {
      const us = quantile(busyFloors, share);
      report({
        name: `floor beside pumps, ${percent} / floor's`,
        value: us / floorOf(share),
        unit: "",
        detail: `${us.toFixed(0)} us, of ${busyFloors.length} pages`,
      });
    }
    for (const [name, times, goals] of [
      ["saturated", busy, { p50: 2, p99: 5 }],
      ["quiet", quiet, { p50: 1.3, p99: 2 }],
      ["quiet, unprepared", unprepared, { p50: null, p99: null }],
      // Each wait is for 4 KiB of such a page, which is what a fault needs.
      ["saturated, host pages of 2 MiB", huge, { p50: 4, p99: null }],
    ] as const) {
      const all = times.flat();
      assert(all.length > 0, "the guest waited for pages");
      for (const [percent, share] of PERCENTS) {
        const us = quantile(all, share);
        const goal = goals[percent];
        report({
          name: `${name}, ${percent} / floor's`,
          value: us / floorOf(share),
          unit: "",
          ...(goal === null ? {} : { goal: { atMost: goal } }),
          detail: `${us.toFixed(0)} us, of ${all.length} faults`,
        });
      }
      const late = times.flatMap((each) => each.slice(WARM_FAULTS));
      if (late.length === 0) continue;
      const us = quantile(late, 0.99);
      report({
        name: `${name}, p99 / floor's, once code is compiled`,
        value: us / floorOf(0.99),
        unit: "",
        detail: `${us.toFixed(0)} us, of the faults behind the first ${WARM_FAULTS} of each run`,
      });
    }
    report({
      name: "background / pre-copy",
      value: median(rates),
      unit: "",
      goal: { atLeast: 0.8 },
      detail: listed(rates),
    });
  },
};

/** The processors of both threads of a floor. */
type Placement = readonly [number | null, number | null];

const ANYWHERE: Placement = [null, null];

/** On two processors and on one, where this process has two, and `taskset` of util-linux. */
function placements(): { apart: Placement; together: Placement } {
  const allowed = /^Cpus_allowed_list:\s+(.*)$/m.exec(
    readFileSync("/proc/self/status", "utf8"),
  )?.[1];
  const ends = (allowed ?? "").match(/\d+/g)?.map(Number) ?? [];
  const [first, last] = [ends.at(0), ends.at(-1)];
  const isPinned = spawnSync("taskset", ["--version"]).status === 0;
  if (!isPinned || first === undefined || last === undefined || first === last) {
    return { apart: ANYWHERE, together: ANYWHERE };
  }
  return { apart: [first, last], together: [first, first] };
}

async function floorOnce(
  { source, destination }: Pair,
  { count, pauseMs = 0, on: [near, far] }: { count: number; pauseMs?: number; on: Placement },
): Promise<readonly number[]> {
  const address = await source.order("answerFloor", count, near);
  const times = await destination.order("askFloor", address, { count, pauseMs, processor: far });
  await source.order("answeredFloor");
  return times;
}

/** The same beside threads that pump, again and again until it is over. */
async function floorBesidePumps(
  pair: Pair,
  { count, channels, bytes }: { count: number; channels: number; bytes: number },
): Promise<readonly number[]> {
  const { source, destination } = pair;
  const load = {
    connections: channels,
    bytes,
    pieceBytes: PUMP_PIECE_BYTES,
    isThroughMemory: true,
  };
  let isAsked = false;
  const asked = floorOnce(pair, { count, pauseMs: PAUSE_MS, on: ANYWHERE });
  asked
    .finally(() => {
      isAsked = true;
    })
    .catch(() => {});
  while (!isAsked) {
    const address = await destination.order("pumpIn", load);
    await source.order("pumpOut", address, load);
    await destination.order("pumpedIn");
  }
  return await asked;
}

function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = Math.min(sorted.length - 1, Math.floor(sorted.length * share));
  return must(sorted[at], "a quantile is of something");
}
