import { readFileSync, writeFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { assert, must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import { type DestinationPhase, type MigrateInOptions, migrateIn } from "../engine/destination.ts";
import type { DestinationHost } from "../engine/host.ts";
import { LiveParameters } from "../engine/live-parameters.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import { ReadyThreads } from "../engine/ready-threads.ts";
import { migrateOut, type SourcePhase } from "../engine/source.ts";
import type { Report } from "../engine/statistics.ts";
import { MemoryGuestDestination } from "../hosts/memory-guest/destination.ts";
import { MemoryGuest } from "../hosts/memory-guest/guest.ts";
import { answerFloor, askFloor } from "./fault-floor.ts";
import { type PumpFigures, type PumpLoad, pumpIn, pumpOut } from "./pump.ts";
import { rewrittenGuest, TouchedGuest } from "./touched-guest.ts";
import {
  busyShape,
  type Content,
  digest,
  fill,
  PAGE_BYTES,
  stillGuest,
  waitingMemory,
} from "./workloads.ts";

/** What one end knows of a migration. */
export interface Travel {
  readonly report: Report;
  /** This whole process's, main thread included, while pages moved before the pause. */
  readonly cpuMs: number;
}

/** Delay of the main thread's event loop beyond the interval at which it is looked at. */
export interface LoopDelay {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  readonly samples: number;
}

/** Bulk channels that carry this do next to nothing. */
const QUIET_BYTES_PER_SECOND = 2 * MIB;

/** The interval of the delay's samples, and what an idle loop shows for it. */
const LOOP_INTERVAL_MS = 1;

/**
 * One end of a benchmark, in a process of its own, which does what the benchmark orders: hold
 * memory, send it, take it in, pump. It is the same for engine and pump.
 */
export class Peer {
  #memory: SharedArrayBuffer | null = null;
  #guest: MemoryGuest | null = null;
  #busyDestination: MemoryGuestDestination | null = null;
  #arriving: Promise<Travel> | null = null;
  #pumping: Promise<PumpFigures> | null = null;
  #delay: ReturnType<typeof monitorEventLoopDelay> | null = null;
  #answering: Promise<unknown> | null = null;
  #touching: TouchedGuest | null = null;
  #threads: ReadyThreads | null = null;
  #usesKept = true;
  #address = "127.0.0.1";

  /** The address of this end at which guests arrive; loopback's, unless told. */
  async liveAt(address: string): Promise<void> {
    this.#address = address;
  }

  /** Guests go by threads that are kept from one to the next: so many, or none. */
  async keepThreads(side: "source" | "destination", count: number): Promise<void> {
    await this.#threads?.close();
    this.#threads = count === 0 ? null : new ReadyThreads(side, count);
    await this.#threads?.started();
  }

  /** Whether what follows goes by the threads that are kept; they stay until it does again. */
  async useKept(isUsed: boolean): Promise<void> {
    this.#usesKept = isUsed;
  }

  get #kept(): { threads?: ReadyThreads } {
    return this.#threads === null || !this.#usesKept ? {} : { threads: this.#threads };
  }

  /** Processor time of this process so far, its threads' included. */
  async cpuMs(): Promise<number> {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  }

  /** Memory of which every page is written: it is there, at both ends, before anything is timed. */
  async hold(what: { bytes: number; content: Content; seed: number }): Promise<void> {
    if (this.#memory?.byteLength !== what.bytes) this.#memory = new SharedArrayBuffer(what.bytes);
    fill(this.#bytes, what.content, what.seed);
  }

  /** Overwrites everything, so that what is found later must have arrived. */
  async soil(): Promise<void> {
    this.#bytes.fill(0xa5);
  }

  /** Looks at every page, so that none has to be found first by the system that this one runs on. */
  async touch(): Promise<void> {
    const bytes = this.#bytes;
    let sum = 0;
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) sum += bytes[at] as number;
    assert(sum >= 0, "bytes are not negative");
  }

  /** Memory that nobody has written: the system provides pages as they arrive. */
  async holdFresh(bytes: number): Promise<void> {
    this.#memory = new SharedArrayBuffer(bytes);
  }

  /** Of all that is held, or of its first bytes. */
  async digest(bytes?: number): Promise<string> {
    return await digest(this.#bytes.subarray(0, bytes));
  }

  /**
   * Uses as much memory and gives it back. Where this machine is itself a guest, what it has not used
   * for a while must first be found by its host, which takes longer than what is measured.
   */
  async warm(bytes: number): Promise<void> {
    new Uint8Array(new SharedArrayBuffer(bytes)).fill(1);
    globalThis.gc?.();
  }

  async holdBusy(size: Parameters<typeof busyShape>[0]): Promise<void> {
    this.#guest = await MemoryGuest.create(busyShape(size));
    await this.#guest.run();
  }

  async listen(options: ParameterOptions & { pristine?: boolean }): Promise<string> {
    const { pristine = false, ...parameters } = options;
    const memory = must(this.#memory, "memory is held before a guest arrives");
    return await this.#arrive(waitingMemory(memory, pristine), { ...parameters, ...this.#kept });
  }

  async listenBusy(options: ParameterOptions & { vcpus: number }): Promise<string> {
    const { vcpus, ...parameters } = options;
    this.#busyDestination = new MemoryGuestDestination({ vcpuThreads: vcpus });
    return await this.#arrive(this.#busyDestination, parameters);
  }

  /** Ends the busy guest that arrived and looks at every byte of it. */
  async problems(): Promise<readonly string[]> {
    const { guest } = must(this.#busyDestination, "a busy guest was awaited");
    await guest.stop();
    return await guest.verify();
  }

  async arrived(): Promise<Travel> {
    return await must(this.#arriving, "somebody listens before something arrives");
  }

  /** Sends the busy guest, or else what is held: all of it, or its first `bytes`. */
  async depart(address: string, options: ParameterOptions, bytes?: number): Promise<Travel> {
    const memory = this.#guest === null ? must(this.#memory, "memory is held to be sent") : null;
    const host = memory === null ? must(this.#guest, "a guest runs") : stillGuest(memory, bytes);
    const meter = new PhaseMeter<SourcePhase>("precopy");
    const { onPhase } = meter;
    const report = await migrateOut(host, address, { ...options, ...this.#kept, onPhase });
    await this.#guest?.stop();
    return { report, cpuMs: meter.cpuMs };
  }

  /** Answers as many requests as will come. */
  async answerFloor(count: number, processor: number | null): Promise<string> {
    const { address, finished } = await answerFloor(count, processor);
    this.#answering = finished;
    return address;
  }

  async answeredFloor(): Promise<void> {
    await must(this.#answering, "somebody answered");
  }

  async askFloor(address: string, how: Parameters<typeof askFloor>[1]): Promise<number[]> {
    return Array.from(await askFloor(address, how));
  }

  /**
   * Takes a guest in whose pages are touched before they are there, so many of them. With threads that are
   * ready before it comes, for so many channels, or without any.
   */
  async listenToFaults(
    what: { bytes: number; pageBytes: number; faults: number; pauseMs: number },
    ready: number,
  ): Promise<string> {
    const memory = must(this.#memory, "memory is held before a guest arrives");
    this.#touching = new TouchedGuest(memory, what);
    if (ready === 0) return await this.#arrive(this.#touching, {});
    const threads = readyForOne("destination", ready);
    await Promise.all([threads.started(), this.#touching.prepared()]);
    return await this.#arrive(this.#touching, { threads });
  }

  /** Microseconds that each touch of a missing page took. */
  async faultTimes(): Promise<number[]> {
    return await must(this.#touching, "a guest was touched").times();
  }

  /** Sends a guest that has written all of its memory once more when it pauses. `ready` as at its other end. */
  async departDirty(
    address: string,
    what: { bytes: number; pageBytes: number; quietMs: number },
    options: ParameterOptions,
    ready: number,
  ): Promise<Travel> {
    await using threads = readyForOne("source", ready);
    await threads.started();
    const host = rewrittenGuest(must(this.#memory, "memory is held to be sent"), what);
    const live = new LiveParameters();
    let loud: NodeJS.Timeout | undefined;
    const onPhase = (phase: SourcePhase): void => {
      if (phase !== "pause" || what.quietMs === 0) return;
      live.change({ maxBandwidthBytesPerSecond: QUIET_BYTES_PER_SECOND });
      loud = setTimeout(() => live.change({ maxBandwidthBytesPerSecond: 0 }), what.quietMs);
    };
    const given = { ...options, live, onPhase, ...(ready === 0 ? {} : { threads }) };
    const report = await migrateOut(host, address, given);
    clearTimeout(loud);
    return { report, cpuMs: report.cpuMs };
  }

  async pumpIn(load: PumpLoad): Promise<string> {
    const { address, finished } = await pumpIn(load, this.#held);
    this.#pumping = finished;
    return address;
  }

  async pumpedIn(): Promise<PumpFigures> {
    return await must(this.#pumping, "a pump was started");
  }

  async pumpOut(address: string, load: PumpLoad): Promise<PumpFigures> {
    return await pumpOut(address, load, this.#held);
  }

  async watchLoop(): Promise<void> {
    this.#delay = monitorEventLoopDelay({ resolution: LOOP_INTERVAL_MS });
    this.#delay.enable();
  }

  async loopDelay(): Promise<LoopDelay> {
    const delay = must(this.#delay, "the loop was watched");
    delay.disable();
    const beyond = (ns: number): number => Math.max(0, ns / 1e6 - LOOP_INTERVAL_MS);
    return {
      p50Ms: beyond(delay.percentile(50)),
      p99Ms: beyond(delay.percentile(99)),
      maxMs: beyond(delay.max),
      samples: delay.count,
    };
  }

  /** From here on `peakBytes` is of what follows. Returns what is resident now. */
  async resetPeak(): Promise<number> {
    globalThis.gc?.();
    writeFileSync("/proc/self/clear_refs", "5");
    return statusBytes("VmRSS");
  }

  /** The most memory that was resident at once, the guest's included. */
  async peakBytes(): Promise<number> {
    return statusBytes("VmHWM");
  }

  get #bytes(): Uint8Array {
    return new Uint8Array(this.#held);
  }

  get #held(): SharedArrayBuffer {
    return must(this.#memory, "memory is held first");
  }

  async #arrive(host: DestinationHost, options: MigrateInOptions): Promise<string> {
    const listening = Promise.withResolvers<string>();
    const meter = new PhaseMeter<DestinationPhase>("receive");
    const arriving = migrateIn(host, `tcp:${this.#address}:0`, {
      ...options,
      onListening: listening.resolve,
      onPhase: meter.onPhase,
    }).then((report) => ({ report, cpuMs: meter.cpuMs }));
    arriving.catch(listening.reject);
    this.#arriving = arriving;
    return await listening.promise;
  }
}

/** What a guest needs that may come to post-copy, for one guest: threads that have served are faster. */
function readyForOne(side: "source" | "destination", channels: number): ReadyThreads {
  return new ReadyThreads(side, channels, { lanes: Math.min(channels, 1), isForOne: true });
}

function statusBytes(field: "VmRSS" | "VmHWM"): number {
  const status = readFileSync("/proc/self/status", "utf8");
  const kib = new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(status)?.[1];
  return Number(must(kib, "Linux tells what is resident")) * KIB;
}

/** Processor time of this process while one phase lasts. */
class PhaseMeter<P extends string> {
  readonly #phase: P;
  #before: NodeJS.CpuUsage | null = null;
  cpuMs = 0;

  constructor(phase: P) {
    this.#phase = phase;
  }

  readonly onPhase = (phase: P): void => {
    if (phase === this.#phase) {
      this.#before = process.cpuUsage();
    } else if (this.#before !== null) {
      const { user, system } = process.cpuUsage(this.#before);
      this.cpuMs = (user + system) / 1000;
      this.#before = null;
    }
  };
}

/** An order as it crosses to the process, and what comes back. */
export interface Order {
  readonly id: number;
  readonly name: string;
  readonly words: readonly unknown[];
}
export type Answer =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly problem: string };

function serve(): void {
  const peer = new Peer();
  const say = (answer: Answer): void => void process.send?.(answer);
  process.on("message", ({ id, name, words }: Order) => {
    const method = peer[name as keyof Peer] as (...words: readonly unknown[]) => Promise<unknown>;
    assert(typeof method === "function", "an order is a method of Peer");
    method.apply(peer, [...words]).then(
      (value) => say({ id, value }),
      (error: Error) => say({ id, problem: error.stack ?? String(error) }),
    );
  });
  process.once("disconnect", () => process.exit());
}

if (import.meta.main) serve();
