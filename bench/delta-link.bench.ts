import { assert } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import type { Report as Migration } from "../engine/statistics.ts";
import { Link } from "./link.ts";
import { type Benchmark, listed, median } from "./measure.ts";
import { Pair } from "./peer-process.ts";

const SMOKE = {
  guestBytes: 16 * MIB,
  dirtyBytesPerSecond: 20 * MIB,
  linkMegabits: 1000,
  downtimeLimitMs: 300,
  channels: 2,
  runs: 1,
};

const GOAL_SHARE = 0.25;

/**
 * A guest that rewrites all of its memory again and again, 64 bytes of each page, over a link that
 * is hardly faster than it. Both ways have the same limits and the same memory, warm at both ends;
 * a cache holds the guest. Without deltas, each round leaves nearly as much to send as it sent.
 *
 * "The bytes that it sends without" are those of the whole migration under the engine's own limits:
 * until the guest converges, or else until its rounds are used up and it is switched over anyway.
 * As this is the more the longer one waits, the same number of rounds is told beside it.
 */
export const deltaLink: Benchmark<typeof SMOKE> = {
  name: "delta-link",
  about:
    "a guest that changes a few bytes of every page, over a limited link, with xbzrle and without",
  smoke: SMOKE,
  real: { ...SMOKE, guestBytes: 256 * MIB, dirtyBytesPerSecond: 100 * MIB, runs: 3 },

  async run(report, parameters) {
    await using link = await Link.make();
    link.limit(parameters.linkMegabits * 1e6);
    const found = { with: [] as Migration[], without: [] as Migration[] };
    for (let run = 0; run < parameters.runs; run += 1) {
      found.with.push(await migrateOnce(link, parameters, true));
      found.without.push(await migrateOnce(link, parameters, false));
    }
    for (const [name, migrations] of [
      ["with xbzrle", found.with],
      ["without", found.without],
    ] as const) {
      const downtimes = migrations.map(({ downtimeMs }) => downtimeMs);
      const goal = name === "without" ? {} : { goal: { atMost: parameters.downtimeLimitMs } };
      report({ name: `${name}, downtime`, ...of(downtimes, "ms"), ...goal });
      report({
        name: `${name}, total time`,
        ...of(
          migrations.map((each) => each.totalMs),
          "ms",
        ),
      });
      report({
        name: `${name}, rounds`,
        ...of(
          migrations.map((each) => each.rounds.length),
          "",
        ),
      });
      const sent = migrations.map(({ sentBytes }) => sentBytes / MIB);
      report({ name: `${name}, sent`, ...of(sent, "MiB") });
    }
    const shares = found.with.map((one, run) => {
      return one.sentBytes / (found.without[run]?.sentBytes ?? Number.NaN);
    });
    report({ name: "sent with / without", ...of(shares, ""), goal: { atMost: GOAL_SHARE } });
    const early = found.with.map((one, run) => {
      const rounds = found.without[run]?.rounds.slice(0, one.rounds.length) ?? [];
      return one.sentBytes / rounds.reduce((sum, { sentBytes }) => sum + sentBytes, 0);
    });
    report({ name: "the same, in as many rounds", ...of(early, "") });
  },
};

function of(values: readonly number[], unit: string) {
  return { value: median(values), unit, detail: `by run ${listed(values)}` };
}

async function migrateOnce(
  link: Link,
  { guestBytes, dirtyBytesPerSecond, downtimeLimitMs, channels }: typeof SMOKE,
  xbzrle: boolean,
): Promise<Migration> {
  await using pair = new Pair(link);
  const { source, destination } = pair;
  await Promise.all([
    destination.order("liveAt", link.far.address),
    destination.order("warm", guestBytes),
  ]);
  await source.order("holdBusy", {
    ...{ guestBytes, dirtyBytesPerSecond, workingSetBytes: guestBytes },
    ...{ vcpus: 1, pattern: "sweep", zeroShare: 0 },
  });
  const address = await destination.order("listenBusy", { vcpus: 1 });
  const cache = xbzrle ? { xbzrle, xbzrleCacheBytes: guestBytes } : {};
  const limits = { channels, downtimeLimitMs, nonConvergence: "switch-over" } as const;
  const { report } = await source.order("depart", address, { ...limits, ...cache });
  await destination.order("arrived");
  assert((await destination.order("problems")).length === 0, "the guest arrived undamaged");
  link.expectHeld(report);
  assert(report.pages.delta > 0 === xbzrle, "deltas went where they were wanted");
  return report;
}
