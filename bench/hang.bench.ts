import { assert } from "../base/assert.ts";
import { after, nowMs } from "../base/clock.ts";
import { HANGS } from "../test/harness/hangs.ts";
import { migratePair } from "../test/harness/pair.ts";
import { RecordingDestination } from "../test/harness/recording-destination.ts";
import { RecordingSource } from "../test/harness/recording-source.ts";
import { type Benchmark, listed } from "./measure.ts";

const SMOKE = { hangMs: 120, runs: 1 };

const GOAL_MS = 100;

/** Far beyond what is measured: a limit that fires would be no answer to anybody. */
const LIMITS = { channelTimeoutMs: 20_000, stepTimeoutMs: 20_000, connectTimeoutMs: 20_000 };

/**
 * How long a migration keeps its host waiting while its last stages hang, in every way that the
 * tests know: the longest time between two reports of progress, at either end, and the time from a
 * cancel to the settled promise. The worst of all runs counts.
 */
export const hang: Benchmark<typeof SMOKE> = {
  name: "hang",
  about: "answers while a device, a peer or a disk hangs: progress, and cancel at the source",
  smoke: SMOKE,
  real: { hangMs: 1000, runs: 3 },

  async run(report, { hangMs, runs }) {
    for (const name of Object.keys(HANGS)) {
      const measured: Measured[] = [];
      for (let run = 0; run < runs; run += 1) measured.push(await measure(name, hangMs));
      for (const [what, values] of [
        ["progress", measured.map(({ gapMs }) => gapMs)],
        ["cancel", measured.map(({ cancelMs }) => cancelMs)],
      ] as const) {
        report({
          name: `${what}: ${name}`,
          value: Math.max(...values),
          unit: "ms",
          goal: { atMost: GOAL_MS },
          detail: listed(values),
        });
      }
    }
  },
};

interface Measured {
  readonly gapMs: number;
  readonly cancelMs: number;
}

async function measure(name: string, hangMs: number): Promise<Measured> {
  const source = new RecordingSource({ seed: 1 });
  source.onLook = () => source.writePages(2);
  source.onPause = () => source.writePages(40);
  const usual = { onLook: source.onLook, onPause: source.onPause };
  const ends = { source, destination: new RecordingDestination() };
  const abort = new AbortController();
  const gaps = { source: new Gaps(), destination: new Gaps() };
  let cancelledAtMs = 0;
  let settledAtMs = 0;
  {
    await using hanging = await HANGS[name]?.(ends);
    assert(hanging !== undefined, "there is a hang of that name");
    void hanging.begun.then(() => {
      for (const each of Object.values(gaps)) each.start();
      after(hangMs, () => {
        for (const each of Object.values(gaps)) each.stop();
        cancelledAtMs = nowMs();
        abort.abort();
      });
    });
    const outcome = await migratePair({
      ...ends,
      ...hanging.options,
      out: { ...LIMITS, channels: 1, signal: abort.signal, onProgress: () => gaps.source.tell() },
      in: { ...LIMITS, onProgress: () => gaps.destination.tell() },
      onSourceEnd: () => {
        settledAtMs = nowMs();
        void hanging[Symbol.asyncDispose](); // The other end may hang still.
      },
    });
    assert(outcome.source.failure?.code === "CANCELLED", "it was cancelled as it hung");
    assert(source.running, "the guest runs on");
  }
  Object.assign(source, usual);
  const retry = await migratePair({ source, destination: new RecordingDestination() });
  assert(retry.source.failure === null, "the retry succeeds");
  const gapMs = Math.max(...Object.values(gaps).map((each) => each.longestMs));
  return { gapMs, cancelMs: settledAtMs - cancelledAtMs };
}

/** The longest time without a report, from `start` to `stop`. */
class Gaps {
  longestMs = 0;
  #lastMs: number | null = null;

  start(): void {
    this.#lastMs = nowMs();
  }

  tell(): void {
    if (this.#lastMs === null) return;
    this.longestMs = Math.max(this.longestMs, nowMs() - this.#lastMs);
    this.#lastMs = nowMs();
  }

  stop(): void {
    this.tell();
    this.#lastMs = null;
  }
}
