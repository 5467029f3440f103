import { assert } from "../base/assert.ts";
import { after, nowMs } from "../base/clock.ts";
import { GIB, MIB } from "../base/units.ts";
import { migrateIn } from "../engine/destination.ts";
import type { FaultDoor } from "../engine/faults.ts";
import { LiveParameters } from "../engine/live-parameters.ts";
import { PostcopyRecovery } from "../engine/postcopy-recovery.ts";
import { migrateOut } from "../engine/source.ts";
import { Phases } from "../test/harness/phases.ts";
import { MISSING } from "../workers/fault-door.ts";
import { type Benchmark, listed, median } from "./measure.ts";
import { rewrittenGuest, TouchedGuest } from "./touched-guest.ts";
import { digest, fill, PAGE_BYTES } from "./workloads.ts";

const SMOKE = { guestBytes: 32 * MIB, channels: 2, runs: 1, warmups: 0 };

const GOAL_MS = 1000;

/** How often it is looked whether a page came, and for how long. */
const LOOK_MS = 1;
const LIMIT_MS = 60_000;

/** Slow enough that most is missing when the link breaks; lifted once it is joined again. */
const BYTES_PER_SECOND = 24 * MIB;

/**
 * How long a guest whose link broke in post-copy gets nothing once somebody recovers it: from the call
 * at the source, before it connects, to the first page at the destination. Between them lie new
 * channels and lanes, threads of their own, and what either end has, compared for all of the memory.
 * Both ends share this process and its event loop.
 */
export const recovery: Benchmark<typeof SMOKE> = {
  name: "recovery",
  about: "a post-copy whose link broke, from new channels to the first page",
  smoke: SMOKE,
  real: { guestBytes: 1 * GIB, channels: 2, runs: 5, warmups: 1 },

  async run(report, { guestBytes, channels, runs, warmups }) {
    const from = new SharedArrayBuffer(guestBytes);
    fill(new Uint8Array(from), "random", 1);
    const wanted = await digest(new Uint8Array(from));
    const times: number[] = [];
    for (let run = -warmups; run < runs; run += 1) {
      const to = new SharedArrayBuffer(guestBytes);
      const ms = await recoverOnce({ from, to, guestBytes, channels });
      assert((await digest(new Uint8Array(to))) === wanted, "every byte arrived");
      if (run >= 0) times.push(ms);
    }
    report({
      name: "from new channels to the first page",
      value: median(times),
      unit: "ms",
      goal: { atMost: GOAL_MS },
      detail: listed(times),
    });
  },
};

async function recoverOnce(what: {
  from: SharedArrayBuffer;
  to: SharedArrayBuffer;
  guestBytes: number;
  channels: number;
}): Promise<number> {
  const { from, to, guestBytes, channels } = what;
  const phases = { source: new Phases(), destination: new Phases() };
  const recovery = { source: new PostcopyRecovery(), destination: new PostcopyRecovery() };
  const host = new TouchedGuest(to, { faults: 0, pauseMs: 0 });
  const live = new LiveParameters();
  const listening = Promise.withResolvers<string>();
  const arriving = migrateIn(host, "tcp:127.0.0.1:0", {
    recovery: recovery.destination,
    onPhase: phases.destination.note,
    onListening: listening.resolve,
  });
  const address = await listening.promise;
  const source = rewrittenGuest(from, { bytes: guestBytes, pageBytes: PAGE_BYTES });
  const leaving = migrateOut(source, address, {
    channels,
    live,
    postcopy: "after-rounds",
    recovery: recovery.source,
    onPhase: (phase) => {
      if (phase === "pause") live.change({ maxBandwidthBytesPerSecond: BYTES_PER_SECOND });
      phases.source.note(phase);
    },
  });
  const moved = Promise.all([leaving, arriving]);
  moved.catch(() => {}); // Asked for below.

  const both = Object.values(phases);
  await Promise.race([moved, Promise.all(both.map((end) => end.reach("postcopy")))]);
  recovery.source.pause();
  await Promise.race([moved, Promise.all(both.map((end) => end.reach("postcopy-paused")))]);
  const { door } = host;
  const missing = missingPages(door);
  assert(missing > guestBytes / PAGE_BYTES / 2, "most of the guest is missing");
  const startMs = nowMs();
  const [endMs] = await Promise.all([firstPage(door, missing), recovery.source.recover()]);
  live.change({ maxBandwidthBytesPerSecond: 0 });
  await moved;
  return endMs - startMs;
}

function missingPages({ words }: FaultDoor): number {
  return Atomics.load(words, MISSING);
}

/** When fewer pages are missing than were. */
async function firstPage(door: FaultDoor, missing: number): Promise<number> {
  const endMs = nowMs() + LIMIT_MS;
  while (missingPages(door) >= missing) {
    assert(nowMs() < endMs, "a migration that was recovered goes on");
    const { promise, resolve } = Promise.withResolvers<void>();
    after(LOOK_MS, resolve);
    await promise;
  }
  return nowMs();
}
