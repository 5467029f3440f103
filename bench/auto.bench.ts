import { assert, must } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import type { Report as Migration } from "../engine/statistics.ts";
import { Link } from "./link.ts";
import { type Benchmark, listed, median, type Report } from "./measure.ts";
import { Pair } from "./peer-process.ts";

const SMOKE = {
  /** The most that a guest has: that much memory is held, and warm, at both ends. */
  memoryBytes: 2 * MIB,
  /** How long a guest should take that goes as it is, if that much memory is enough. */
  rawMs: 100,
  runs: 1,
  channels: 2,
  /** Of the one link to measure, or 0 for all. */
  linkMegabits: 1000,
};

/** In megabits per second; the last one stands for a link without a limit. */
const UNLIMITED = 1_000_000;
const LINKS: ReadonlyMap<number, string> = new Map([
  [100, "100 Mbit/s"],
  [1000, "1 Gbit/s"],
  [10_000, "10 Gbit/s"],
  [UNLIMITED, "unlimited"],
]);

const CONTENTS = ["text", "random"] as const;
const FIXED = ["none", "zstd", "deflate"] as const;
const CHOICES = [...FIXED, "auto"] as const;
type Choice = (typeof CHOICES)[number];

/** Guests are whole chunks. */
const GRAIN_BYTES = 2 * MIB;

/** A fixed choice that takes so much longer than another one is not made again: it is not the best. */
const HOPELESS = 3;

const GOAL_RATIO = 1.15;

/**
 * A stopped guest of text or of random bytes over links of four speeds, once with each fixed choice
 * and once with `auto`, turn and turn about. Memory of both ends is there, and all of it was just
 * touched, before each run: none has to be found first. The figure is the report's total time, from the
 * first connection on, of which starting the threads is part.
 */
export const auto: Benchmark<typeof SMOKE> = {
  name: "auto",
  about: "compression auto against each fixed choice, over links of four speeds",
  smoke: SMOKE,
  real: { ...SMOKE, memoryBytes: 1024 * MIB, rawMs: 8000, runs: 3, channels: 4, linkMegabits: 0 },

  async run(report, parameters) {
    const { memoryBytes: bytes, linkMegabits } = parameters;
    await using link = await Link.make();
    await using pair = new Pair(link);
    await pair.destination.order("liveAt", link.far.address);
    await pair.destination.order("hold", { bytes, content: "zero", seed: 0 });
    for (const content of CONTENTS) {
      await pair.source.order("hold", { bytes, content, seed: 1 });
      // Not counted: the first of all migrations warms up what all of them use.
      if (content === CONTENTS[0]) await migrateOnce(pair, "none", parameters, bytes);
      for (const [megabits, name] of LINKS) {
        if (linkMegabits !== 0 && linkMegabits !== megabits) continue;
        link.limit(megabits === UNLIMITED ? null : megabits * 1e6);
        const guestBytes = sizeFor(megabits, parameters);
        const title = `${name}, ${content}`;
        const found = await compare(pair, { ...parameters, guestBytes });
        for (const migration of [...found.values()].flat()) link.expectHeld(migration);
        tell(report, title, found);
      }
    }
  },
};

function sizeFor(megabits: number, { memoryBytes, rawMs }: typeof SMOKE): number {
  const bytes = (megabits / 8) * 1000 * rawMs;
  return Math.min(memoryBytes, Math.max(1, Math.floor(bytes / GRAIN_BYTES)) * GRAIN_BYTES);
}

type Case = typeof SMOKE & { readonly guestBytes: number };

async function compare(pair: Pair, given: Case): Promise<Map<Choice, Migration[]>> {
  const found = new Map<Choice, Migration[]>(CHOICES.map((choice) => [choice, []]));
  const { guestBytes } = given;
  const wanted = await pair.source.order("digest", guestBytes);
  for (let run = 0; run < given.runs; run += 1) {
    // Who comes first differs from run to run.
    const order = CHOICES.map((_, index) => CHOICES[(index + run) % CHOICES.length] as Choice);
    for (const choice of order) {
      if (isHopeless(choice, found)) continue;
      const report = await migrateOnce(pair, choice, given, guestBytes);
      const arrived = run > 0 || (await pair.destination.order("digest", guestBytes));
      assert(arrived === true || arrived === wanted, "every byte of the guest arrived");
      must(found.get(choice), "every choice has a list").push(report);
    }
  }
  return found;
}

async function migrateOnce(
  { source, destination }: Pair,
  compression: Choice,
  { channels }: typeof SMOKE,
  guestBytes: number,
): Promise<Migration> {
  await Promise.all([source.order("touch"), destination.order("soil")]);
  const address = await destination.order("listen", {});
  const { report } = await source.order("depart", address, { channels, compression }, guestBytes);
  await destination.order("arrived");
  return report;
}

function isHopeless(choice: Choice, found: ReadonlyMap<Choice, readonly Migration[]>): boolean {
  const times = [...found.values()].flatMap((reports) => reports.map(({ totalMs }) => totalMs));
  const first = found.get(choice)?.[0];
  return choice !== "auto" && first !== undefined && first.totalMs > HOPELESS * Math.min(...times);
}

function tell(report: Report, title: string, found: ReadonlyMap<Choice, Migration[]>): void {
  const migrationsOf = (choice: Choice): Migration[] => {
    return must(found.get(choice), "every choice was made");
  };
  const timesOf = (choice: Choice): number[] => migrationsOf(choice).map(({ totalMs }) => totalMs);
  const roundOf = (choice: Choice): number => {
    return median(migrationsOf(choice).map(({ rounds }) => rounds[0]?.elapsedMs ?? Number.NaN));
  };
  for (const choice of CHOICES) {
    const times = timesOf(choice);
    const last = must(migrationsOf(choice).at(-1), "every choice was made");
    const sent = `${(last.sentBytes / MIB).toFixed(0)} of ${last.guestBytes / MIB} MiB sent`;
    const detail = `by run ${listed(times, 0)}; ${sent}`;
    report({ name: `${title}, ${choice}`, value: median(times), unit: "ms", detail });
  }
  const best = FIXED.map((choice) => ({ choice, ms: median(timesOf(choice)) })).reduce((a, b) =>
    a.ms <= b.ms ? a : b,
  );
  report({
    name: `${title}, auto / ${best.choice}`,
    value: median(timesOf("auto")) / best.ms,
    unit: "",
    goal: { atMost: GOAL_RATIO },
    detail: `moving alone ${(roundOf("auto") / roundOf(best.choice)).toFixed(2)}; ${choiceOf(migrationsOf("auto"))}`,
  });
}

/** What `auto` says of itself in the end, of the first bulk channel. */
function choiceOf(migrations: readonly Migration[]): string {
  return migrations.at(-1)?.channels.find(({ lane }) => lane === "bulk")?.codec.choice ?? "";
}
