import { notesOf, type settle, VERDICTS, type Verdict, verdictOf } from "../../cli/handover.ts";
import { callHost } from "../../engine/attempt.ts";
import type { SimulatedDestinationHost, SimulatedSourceHost } from "./guest.ts";
import type { SimulatedRecord } from "./record.ts";
import { Side, type World } from "./world.ts";

/** Longer than a slow host is. */
const PATIENCE_MS = 10_000;

/** A plan has two troubles at most, each of which befalls one call. */
const TRIES = 3;

/**
 * Somebody who looks after the guest from outside, as the documentation tells. Of a hand-over that is
 * in doubt the records of both ends are asked, as far as they can be read, and settled as by
 * `multifd handover --settle`. Once all has come to rest, what does not run where it should is run.
 */
export class Operator {
  readonly side = new Side("operator");
  /** A guest that was handed over, or was to be, runs at the source again by the records' verdict. */
  hasTakenBack = false;
  readonly #world: World;
  readonly #source: SimulatedSourceHost;
  readonly #settle: typeof settle;
  #tasks = 0;

  constructor(world: World, source: SimulatedSourceHost, how: typeof settle) {
    this.#world = world;
    this.#source = source;
    this.#settle = how;
  }

  get isIdle(): boolean {
    return this.#tasks === 0;
  }

  /** The source said HANDOVER_UNKNOWN, and a while later somebody has come to settle that. */
  settle(afterMs: number, recordsThen: () => Records): void {
    this.#do(afterMs, async () => {
      const records = recordsThen();
      await this.#insist("settle it", () =>
        this.#settle(records, undefined, async () => {
          this.hasTakenBack = true;
          if (!this.#source.machine.side.isCrashed) await this.#source.resume();
        }),
      );
      const verdict = verdictOf(notesOf(records));
      this.#world.tell(`the operator settles it: ${verdict}`);
      this.#world.reached.add(`settled: ${verdict}`);
    });
  }

  /** What could not be undone at the source is undone by the hypervisor's own means. */
  restore(): void {
    this.#do(0, async () => {
      await this.#insist("resume", () => this.#source.resume());
      await this.#insist("lift the throttle", () => this.#source.throttle(0));
      await this.#insist("stop the log", () => this.#source.stopDirtyLog());
    });
  }

  /** A guest that was taken over, and whose host failed to run it. */
  runThere(host: SimulatedDestinationHost): void {
    this.#do(0, () => this.#insist("run it there", () => host.resume()));
  }

  #do(afterMs: number, task: () => Promise<void>): void {
    this.#tasks += 1;
    this.#world.at(afterMs, this.side, () => {
      void task().finally(() => {
        this.#tasks -= 1;
      });
    });
  }

  async #insist(what: string, call: () => Promise<void>): Promise<void> {
    for (let left = TRIES - 1; ; left -= 1) {
      try {
        return await callHost(what, PATIENCE_MS, call);
      } catch (error) {
        this.#world.tell(`the operator cannot ${what}: ${String(error)}`);
        if (left === 0) return this.#world.blame(`the operator cannot ${what}: ${String(error)}`);
      }
    }
  }
}

/** Those that can be read: a machine that is gone takes its own along. */
export interface Records {
  readonly source?: SimulatedRecord;
  readonly destination?: SimulatedRecord;
}

/** Where the guest is by the records, and everything that is wrong then, each in a sentence. */
export function problemsOf(
  verdict: Verdict,
  {
    runsHere,
    runsThere,
    source,
    destination,
  }: { runsHere: boolean; runsThere: boolean; source: Side; destination: Side },
): string[] {
  const { owner } = VERDICTS[verdict];
  const problems: string[] = [];
  if (verdict === "contradiction") problems.push("the records contradict each other");
  if (owner === "source" && runsThere) problems.push("the source's guest runs at the destination");
  if (owner === "destination" && runsHere)
    problems.push("the destination's guest runs at the source");
  const mayBeLost =
    owner === "unknown"
      ? source.isCrashed || destination.isCrashed
      : (owner === "source" ? source : destination).isCrashed;
  if (!mayBeLost && !runsHere && !runsThere) problems.push("the guest runs nowhere");
  return problems.map((problem) => `${problem}, and the records say: ${verdict}`);
}
