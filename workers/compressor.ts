import { must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { Choice } from "./choice.ts";
import type { Codec } from "./codecs/codec.ts";
import { letGo } from "./codecs/let-go.ts";
import { codecOf } from "./codecs/list.ts";
import { type CodecSettings, type Control, type CounterRow, readCodecSettings } from "./control.ts";
import { CpuBudget } from "./cpu-budget.ts";
import type { WriteFigures } from "./frame-writer.ts";
import { Stubbornness } from "./stubbornness.ts";
import { Trials } from "./trials.ts";

/** Where a payload comes from: what did not shrink is known by it. */
export interface Memory {
  readonly chunk: number;
  readonly round: number;
}

/** A payload that was compressed. */
export interface Compressed {
  readonly codec: Codec;
  /** To be let go when it was used. */
  readonly bytes: Uint8Array;
}

/** Less than this is not worth the expanding at the other end. */
const SHRUNK = 0.95;

/** A few pages compress badly, and their time is in the system call anyway. */
const PAYLOAD_BYTES_MIN = 2 * 4096;

/**
 * Decides for one channel which payloads are compressed, and does it. What is set may change at any
 * time; it is looked at once per frame, and what was learned of another codec or level is forgotten.
 */
export class Compressor {
  readonly #control: Control;
  readonly #counters: CounterRow;
  #settings: CodecSettings;
  #stubbornness = new Stubbornness();
  #choice: Choice;
  #budget = new CpuBudget();
  #lastEndMs = nowMs();
  readonly #trials: Trials;

  constructor(control: Control, counters: CounterRow) {
    this.#control = control;
    this.#trials = new Trials(control.trials);
    this.#counters = counters;
    this.#settings = readCodecSettings(control);
    this.#choice = new Choice(this.#settings.extraTime);
  }

  /** Time begins to count: what went by since the last frame was not spent on sending. */
  begin(): void {
    this.#lastEndMs = nowMs();
  }

  /**
   * Whether a payload of so many bytes would be tried. What is not must be sent as it is, and is
   * then no matter for `compress`: it counts as one that was left out.
   */
  takes(bytes: number, memory: Memory): boolean {
    const settings = this.#takeSettings();
    if (settings.codec === 0 || bytes < PAYLOAD_BYTES_MIN) return false;
    if (settings.isAuto && !this.#mayTry(settings)) return false;
    return this.#stubbornness.mayTry(memory);
  }

  /** The payload made smaller, or null to send it as it is. */
  compress(payload: Uint8Array, memory: Memory): Compressed | null {
    if (!this.takes(payload.length, memory)) return null;
    const settings = this.#settings;
    const codec = must(codecOf(settings.codec), "every setting is of a codec");
    const startMs = nowMs();
    const bytes = codec.compress(payload, settings.level);
    const elapsedMs = nowMs() - startMs;
    this.#budget.spend(elapsedMs);
    this.#counters.add("codecMs", elapsedMs);
    this.#counters.add("codecTriedBytes", payload.length);
    const hasShrunk = bytes.length < payload.length * SHRUNK;
    this.#stubbornness.learn(memory, hasShrunk);
    if (!hasShrunk) {
      letGo(bytes);
      return null;
    }
    this.#counters.add("codecBeforeBytes", payload.length);
    this.#counters.add("codecAfterBytes", bytes.length);
    return { codec, bytes };
  }

  /** A frame has gone: `auto` learns from what it cost. */
  learn(frame: { payloadBytes: number; wireBytes: number; write: WriteFigures }): void {
    const endMs = nowMs();
    const elapsedMs = endMs - this.#lastEndMs;
    this.#lastEndMs = endMs;
    if (!this.#settings.isAuto) return;
    const { payloadBytes, wireBytes, write } = frame;
    this.#choice.learn({ payloadBytes, wireBytes, elapsedMs, blockedMs: write.waitedMs });
    this.#trials.consult(this.#choice, endMs);
    const { chosen, costMs } = this.#choice;
    this.#counters.set("choiceWay", chosen === "raw" ? 1 : 2);
    this.#counters.set("choiceChanges", this.#choice.changes);
    this.#counters.set("choiceRawMsPerMiB", (costMs.raw ?? 0) * 2 ** 20);
    this.#counters.set("choiceCodecMsPerMiB", (costMs.codec ?? 0) * 2 ** 20);
  }

  #takeSettings(): CodecSettings {
    const before = this.#settings;
    const settings = readCodecSettings(this.#control);
    this.#settings = settings;
    const { codec, level, isAuto, extraTime } = settings;
    const isOther = codec !== before.codec || level !== before.level || isAuto !== before.isAuto;
    if (isOther || extraTime !== before.extraTime) {
      this.#stubbornness = new Stubbornness();
      this.#choice = new Choice(extraTime);
      this.#budget = new CpuBudget();
    }
    return settings;
  }

  #mayTry(settings: CodecSettings): boolean {
    return this.#choice.way === "codec" && this.#budget.allows(settings.cpuShare, nowMs());
  }
}
