import { must } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import { Choice, type FrameFacts } from "./choice.ts";
import { CODEC_WAYS, CodecChoice, SAMPLE_BYTES, type Sample } from "./codec-choice.ts";
import type { Codec } from "./codecs/codec.ts";
import { letGo } from "./codecs/let-go.ts";
import { codecOf } from "./codecs/list.ts";
import {
  CODEC_COUNTERS,
  type CodecSettings,
  type Control,
  type Counter,
  type CounterRow,
  readCodecSettings,
} from "./control.ts";
import { CpuBudget } from "./cpu-budget.ts";
import type { Terms } from "./delta-choice.ts";
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

/** What `auto` tells of the settings that it has. */
const CHOICE_COUNTERS: readonly Counter[] = [
  "choiceWay",
  "choiceRawMsPerMiB",
  "choiceCodecMsPerMiB",
  "choiceCodec",
  ...CODEC_COUNTERS.flatMap(({ ms, share }) => [ms, share]),
];

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
  #codecChoice = new CodecChoice();
  /** Changes of these two that were counted. */
  #told = { changes: 0, codecChanges: 0 };
  #budget = new CpuBudget();
  /** Of the frame that is being made: time in the codec, whether it shrank, and if it was not let in. */
  #codecMs = 0;
  #hasShrunk = false;
  #isForced = false;
  /** Because the processor time that it may take was used up. */
  #isSpent = false;
  /** Samples of it were compressed in two ways. */
  #hasLooked = false;
  #lastEndMs = nowMs();
  readonly #trials: Trials;

  constructor(control: Control, counters: CounterRow) {
    this.#control = control;
    this.#trials = new Trials(control.trials);
    this.#counters = counters;
    this.#settings = readCodecSettings(control);
    this.#choice = new Choice(this.#settings.extraTime);
    // A channel that is taken up again has told before, and may miss that auto ended meanwhile.
    if (!this.#settings.isAuto) this.#tellNothing();
  }

  /** Time begins to count: what went by since the last frame was not spent on sending. */
  begin(): void {
    this.#lastEndMs = nowMs();
  }

  /** Whether it is chosen, while pages are sent, how they go. */
  get isAuto(): boolean {
    return this.#takeSettings().isAuto;
  }

  /**
   * Whether a payload of so many bytes would be tried. What is not must be sent as it is, and is
   * then no matter for `compress`: it counts as one that was left out.
   */
  takes(bytes: number, memory: Memory): boolean {
    const settings = this.#takeSettings();
    this.#isForced = false;
    this.#isSpent = false;
    if (settings.codec === 0 || bytes < PAYLOAD_BYTES_MIN) return false;
    if (settings.isAuto && this.#choice.way === "raw") return false;
    const isAllowed = !settings.isAuto || this.#budget.allows(settings.cpuShare, nowMs());
    this.#isSpent = !isAllowed;
    this.#isForced = !isAllowed || !this.#stubbornness.mayTry(memory);
    return !this.#isForced;
  }

  /** How payloads go with `auto`, and by what else it decides. */
  get terms(): Terms {
    const { cpuShare, extraTime } = this.#takeSettings();
    const isSpent = cpuShare > 0 && !this.#budget.allows(cpuShare, nowMs());
    return { way: this.#choice.chosen, isSpent, extraTime };
  }

  /** Others took so much of the processor time that `auto` may take. */
  spend(ms: number): void {
    this.#budget.spend(ms);
  }

  /** The payload made smaller, or null to send it as it is. */
  compress(payload: Uint8Array, memory: Memory): Compressed | null {
    if (!this.takes(payload.length, memory)) return null;
    const { codec, level } = this.#way(this.#codecChoice.way);
    const { bytes, ms } = this.#timed(codec, payload, level);
    this.#codecMs = ms;
    this.#counters.add("codecTriedBytes", payload.length);
    const hasShrunk = bytes.length < payload.length * SHRUNK;
    this.#hasShrunk = hasShrunk;
    this.#stubbornness.learn(memory, hasShrunk);
    if (!hasShrunk) {
      letGo(bytes);
      return null;
    }
    this.#counters.add("codecBeforeBytes", payload.length);
    this.#counters.add("codecAfterBytes", bytes.length);
    if (this.#settings.isAuto) this.#look(payload);
    return { codec, bytes };
  }

  /**
   * A frame has gone: `auto` learns from what it cost, which is returned. Not from one in which samples
   * were compressed as well: that took its time, while the link was left to drain.
   */
  learn(frame: {
    payloadBytes: number;
    wireBytes: number;
    write: WriteFigures;
  }): (FrameFacts & { atMs: number }) | null {
    const endMs = nowMs();
    const elapsedMs = endMs - this.#lastEndMs;
    this.#lastEndMs = endMs;
    const [codecMs, hasShrunk] = [this.#codecMs, this.#hasShrunk];
    const way = this.#isForced ? "raw" : this.#choice.way;
    if (this.#isSpent) this.#counters.add("codecForcedFrames", 1);
    this.#codecMs = 0;
    this.#hasShrunk = false;
    this.#isForced = false;
    this.#isSpent = false;
    const { payloadBytes, wireBytes, write } = frame;
    const cost = { way, payloadBytes, wireBytes, elapsedMs, blockedMs: write.waitedMs };
    const hasLooked = this.#hasLooked;
    this.#hasLooked = false;
    if (!this.#settings.isAuto || hasLooked) return null;
    this.#choice.learn(cost);
    this.#trials.consult(this.#choice, endMs);
    if (hasShrunk) this.#codecChoice.learn({ ...cost, codecMs }, this.#settings.cpuShare);
    this.#tell();
    return { ...cost, atMs: endMs };
  }

  /** What `auto` chose, and why, for the report. */
  #tell(): void {
    const { chosen, costMs, changes } = this.#choice;
    const { way, changes: codecChanges } = this.#codecChoice;
    this.#counters.set("choiceWay", chosen === "raw" ? 1 : 2);
    this.#counters.set("choiceRawMsPerMiB", (costMs.raw ?? 0) * MIB);
    this.#counters.set("choiceCodecMsPerMiB", (costMs.codec ?? 0) * MIB);
    this.#counters.set("choiceCodec", way);
    this.#counters.add("choiceChanges", changes - this.#told.changes);
    this.#counters.add("choiceCodecChanges", codecChanges - this.#told.codecChanges);
    this.#told = { changes, codecChanges };
  }

  /** What was told is of other settings; how often it was changed goes on to be counted. */
  #tellNothing(): void {
    for (const counter of CHOICE_COUNTERS) this.#counters.set(counter, 0);
    this.#told = { changes: 0, codecChanges: 0 };
  }

  /** Compresses a part of the payload once more in two ways, if another one is worth a look. */
  #look(payload: Uint8Array): void {
    const { candidate, way } = this.#codecChoice;
    if (candidate === null || payload.length < SAMPLE_BYTES) return;
    this.#hasLooked = true;
    const sample = payload.subarray(0, SAMPLE_BYTES);
    this.#codecChoice.compare(SAMPLE_BYTES, {
      chosen: this.#sampled(sample, way),
      other: this.#sampled(sample, candidate),
    });
    for (const [index, counters] of CODEC_COUNTERS.entries()) {
      const cost = this.#codecChoice.costOf(index);
      if (cost === null) continue;
      this.#counters.set(counters.ms, cost.msPerByte * MIB);
      this.#counters.set(counters.share, cost.share);
    }
  }

  #sampled(sample: Uint8Array, index: number): Sample {
    const { codec, level } = this.#way(index);
    const { bytes, ms } = this.#timed(codec, sample, level);
    const made = { ms, bytes: bytes.length };
    letGo(bytes);
    return made;
  }

  #timed(codec: Codec, payload: Uint8Array, level: number): { bytes: Uint8Array; ms: number } {
    const startMs = nowMs();
    const bytes = codec.compress(payload, level);
    const ms = nowMs() - startMs;
    this.#budget.spend(ms);
    this.#counters.add("codecMs", ms);
    return { bytes, ms };
  }

  /** The codec that is set, or with `auto` that of row `index`, with its level. */
  #way(index: number): { codec: Codec; level: number } {
    const { codec, level, isAuto } = this.#settings;
    const set = must(codecOf(codec), "every setting is of a codec");
    if (!isAuto) return { codec: set, level };
    const way = must(CODEC_WAYS[index], "what is chosen is a row");
    return { codec: way.codec, level: way.level ?? level };
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
      this.#codecChoice = new CodecChoice();
      this.#budget = new CpuBudget();
      this.#tellNothing();
    }
    return settings;
  }
}
