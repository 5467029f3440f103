import type { MigrationError } from "../base/errors.ts";
import type { FaultDoor } from "../workers/fault-door.ts";
import type { Block, BlockAnnouncement } from "./block.ts";
import type { DirtyLog, ScanLog } from "./dirty-log.ts";
import type { ParameterOptions } from "./parameters.ts";

/** Opaque state of one device (or of anything else that is not RAM) under its name. */
export interface DeviceSection {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** What a host must keep to when it saves devices, and whom it tells how far it is. */
export interface DeviceTerms {
  /** Of all sections together: more would be refused, so a host may give up before. */
  readonly limitBytes: number;
  /** For the step; a host that keeps to it can say better than the engine what took so long. */
  readonly limitMs: number;
  /** Takes the bytes that were saved so far, for progress. */
  readonly onBytes: (bytes: number) => void;
}

/**
 * What the engine asks of the host whose guest leaves.
 *
 * The engine promises: on success the guest is paused here and stays so. On every failure, timeout
 * or cancel before COMMIT, `resume`, `throttle(0)` and `stopDirtyLog` are called where their
 * counterparts were, also when these threw or never returned, and the guest is as it was found.
 * After COMMIT nothing here is called any more. Every call has a deadline (`step-timeout`).
 *
 * A step that takes effect after its deadline is taken back once more when it does, so that a late
 * `pause` ends with the guest running; but never when a later attempt holds the guest by then.
 */
export interface SourceHost {
  /** The guest's RAM. Stable for the whole migration. */
  readonly blocks: readonly Block[];

  /**
   * What the destination's host has to know of this guest before it takes it in, such as the kind of
   * machine, in any form of at most 32 KiB that both hosts understand. Left out, it is "".
   */
  readonly description?: string;

  /**
   * When the hypervisor itself says that the guest came to rest, in milliseconds of
   * `process.hrtime`; looked at after `pause`. Left out where it does not say, or it stood still
   * before.
   */
  readonly stoppedAtMs?: number | undefined;

  /** What `saveDevices` will give, roughly, for the expected downtime. Unknown is 0. */
  readonly deviceBytes?: number;

  /**
   * What `startDirtyLog` will give, for the rules of legality: they speak before anything starts.
   * Unknown may be left out.
   */
  readonly dirtyLog?: "none" | "bitmap" | "scan";

  /**
   * What suits guests of this host better than the table's defaults, of parameters that the embedder
   * does not give. Left out, nothing does.
   */
  readonly preferences?: ParameterOptions;

  /**
   * Starts to record writes. From its return on, every write shows in one of the logs: they are
   * clean or not, all memory is sent once anyway. A block with a `ScanLog` needs no record: the
   * engine looks for itself. A block without a log: nobody writes it (a stopped guest).
   */
  startDirtyLog(): Promise<readonly (DirtyLog | ScanLog)[]>;
  stopDirtyLog(): Promise<void>;

  /**
   * On return nobody writes guest memory any more and every write is marked. A host that saves some
   * of its device state on the way keeps to the terms.
   */
  pause(terms: DeviceTerms): Promise<void>;

  /** Lets the guest run on if it ran when `pause` was called. Must be harmless when not paused. */
  resume(): Promise<void>;

  /** Takes `percent` (0 to 99) of its time from the guest; 0 lifts it. Absent: cannot. */
  throttle?(percent: number): Promise<void>;

  /** Called once, after `pause` and after all RAM was sent. */
  saveDevices(terms: DeviceTerms): Promise<readonly DeviceSection[]>;
}

/** What a migration may come to at its destination. */
export interface PrepareTerms {
  /** The guest may run before all its memory is there: `takeFaults` may be called. */
  readonly mayFault: boolean;
}

/**
 * What the engine asks of the host where a guest arrives.
 *
 * The engine promises: memory is written only between `prepare` and `loadDevices`, and only inside
 * the blocks that `prepare` returned. `resume` is called once, after COMMIT, and never otherwise;
 * on any failure before that `discard` is called and the guest must not run here.
 */
export interface DestinationHost {
  /**
   * When the hypervisor itself says that the guest began to run, in milliseconds of
   * `process.hrtime`; looked at after `resume`. Left out where it does not say.
   */
  readonly runningSinceMs?: number | undefined;

  /**
   * What a failed attempt left behind, in a sentence that tells what to do about it, such as a
   * hypervisor that cannot be used again; looked at after `discard`, and told with the failure.
   */
  readonly leftover?: string | undefined;

  /**
   * Resolves, with the reason, when no guest can arrive here any more, such as by a hypervisor's end.
   * The attempt fails with it at once, but for a `loadDevices` that goes on, which may say more, and
   * from COMMIT on. Left out where nothing else could end.
   */
  readonly lost?: Promise<MigrationError>;

  /**
   * Provides memory for what the source announces: the same names and sizes, in any order. Throws
   * BLOCK_MISMATCH or MEMORY_UNUSABLE for what it cannot provide, GUEST_MISMATCH where the source's
   * host describes a guest that could not run here.
   */
  prepare(
    announced: readonly BlockAnnouncement[],
    description: string,
    terms: PrepareTerms,
  ): Promise<readonly Block[]>;

  /**
   * Offers post-copy: the guest may run before all its memory is there. Called after `prepare` and
   * before `loadDevices`, when the switch has come; from `resume` on, every vCPU looks before each
   * access whether the page is there, and waits for it where it is not (`awaitPage`). Left out by a
   * host that cannot: the migration is then refused before anything is touched.
   */
  takeFaults?(door: FaultDoor): void | Promise<void>;

  /**
   * All RAM is in place, but for what a door that was taken says is missing. Called once, before
   * READY is answered.
   */
  loadDevices(sections: readonly DeviceSection[]): Promise<void>;

  /** Runs the guest. When it throws, the source stays paused and says HANDOVER_UNKNOWN. */
  resume(): Promise<void>;

  /**
   * The attempt failed before COMMIT: free what `prepare` took. Must be harmless when there is
   * nothing: it is called before `prepare` was, too, and again when a late step takes effect.
   */
  discard(): Promise<void>;
}
