import { stat } from "node:fs/promises";
import { expect } from "vitest";
import type { FailureCode } from "../../base/errors.ts";
import type { MigrateInOptions } from "../../engine/destination.ts";
import type { DeviceSection } from "../../engine/host.ts";
import type { MigrateOutOptions } from "../../engine/source.ts";
import type { Surroundings } from "../../engine/surroundings.ts";
import { difference } from "./guest-memory.ts";
import { LeakCheck } from "./leaks.ts";
import { migratePair, type Outcome, type PairOutcome } from "./pair.ts";
import { RecordingDestination } from "./recording-destination.ts";
import { RecordingSource } from "./recording-source.ts";
import type { Relay } from "./relay.ts";

/** Fewer threads to start than the two ends have by default. */
const CHANNELS = 1;

/** A lost channel is sought for so long: where none can be had, the test waits for that. */
const CONNECT_MS = 1000;

export interface AttemptOptions {
  readonly out?: MigrateOutOptions;
  readonly in?: MigrateInOptions;
  readonly relay?: Relay;
  readonly sourceSurroundings?: Surroundings;
  readonly destinationSurroundings?: Surroundings;
  readonly kind?: "tcp" | "unix";
  readonly onSourceEnd?: () => void;
  readonly onDestinationEnd?: () => void;
}

/** "HOST_FAILED at source", or "completed". */
export type Verdict = `${FailureCode} at ${"source" | "destination"}` | "completed";

/**
 * A guest that shall move, and the promise of who owns it: `fails` runs an attempt that must fail
 * before COMMIT and holds everything that is promised then, `succeeds` one that must not fail.
 */
export class FaultRig {
  readonly source: RecordingSource;
  /** A new one for each attempt, unless a test changes that. */
  destination = new RecordingDestination();
  readonly #leaks = new LeakCheck();

  constructor(seed: number, dirtyLog: "bitmap" | "scan" = "bitmap") {
    this.source = new RecordingSource({ seed, canThrottle: true, dirtyLog });
    // Some pages are dirty after each round and some more when the guest rests.
    this.source.onLook = () => this.source.writePages(2);
    this.source.onPause = () => this.source.writePages(40);
  }

  async attempt(options: AttemptOptions = {}): Promise<PairOutcome> {
    const { source, destination } = this;
    const out = { channels: CHANNELS, connectTimeoutMs: CONNECT_MS, ...options.out };
    return await migratePair({ ...options, source, destination, out });
  }

  /** The guest is at the source as it was found, and nothing of it is left at the destination. */
  async fails(options: AttemptOptions = {}): Promise<PairOutcome> {
    const runningBefore = this.source.running;
    const outcome = await this.attempt(options);
    expect(outcome.source.report).toBe(null);
    this.expectUnharmed(runningBefore);
    expect(outcome.destination.report).toBe(null);
    this.expectDiscarded();
    return outcome;
  }

  expectUnharmed(running = true): void {
    const { running: isRunning, tracking, throttlePercent } = this.source;
    expect({ isRunning, tracking, throttlePercent }).toEqual({
      isRunning: running,
      tracking: false,
      throttlePercent: 0,
    });
    expect(this.source.damage).toBe(null);
  }

  expectDiscarded(): void {
    const { running, blocks, calls } = this.destination;
    expect({ running, blocks }).toEqual({ running: false, blocks: null });
    expect(calls).not.toContain("resume");
    if (calls.includes("prepare")) expect(calls).toContain("discard");
  }

  /** The guest is at the destination with every byte, and rests at the source. */
  async succeeds(options: AttemptOptions = {}): Promise<PairOutcome> {
    this.destination = new RecordingDestination();
    const outcome = await this.attempt(options);
    expect(verdictsOf(outcome)).toEqual({ source: "completed", destination: "completed" });
    this.expectArrived();
    await this.expectNoLeaks();
    return outcome;
  }

  expectArrived(): void {
    const { source, destination } = this;
    expect(source.running).toBe(false);
    expect(destination.running).toBe(true);
    expect(destination.calls).not.toContain("discard");
    expect(difference(source.blocks, destination.blocks ?? [])).toBe(null);
    expect(sectionTexts(destination.sections ?? [])).toEqual(sectionTexts(source.sections));
  }

  /** Threads, descriptors and timers are what they were when this rig was made. */
  async expectNoLeaks(): Promise<void> {
    await this.#leaks.settled();
  }
}

/** Sections as text: bytes one by one are slow to compare where there are millions. */
function sectionTexts(sections: readonly DeviceSection[]): string[] {
  return sections.map(({ name, bytes }) => `${name}: ${Buffer.from(bytes).toString("base64")}`);
}

export function verdictsOf(outcome: PairOutcome): { source: Verdict; destination: Verdict } {
  return { source: verdictOf(outcome.source), destination: verdictOf(outcome.destination) };
}

function verdictOf({ failure }: Outcome): Verdict {
  if (failure === null) return "completed";
  expect(failure.at).toBeDefined();
  return `${failure.code} at ${failure.at ?? "source"}`;
}

/** What Node makes once and keeps, it makes here. For `beforeAll`. */
export async function warmUp(): Promise<void> {
  await stat("."); // Starts the threads for files.
  const source = new RecordingSource({ seed: 0 });
  await migratePair({ source, destination: new RecordingDestination() });
}
