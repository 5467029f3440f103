import type { Failure } from "../base/errors.ts";
import type { Control } from "./control.ts";
import type { DirtyWords } from "./dirty-words.ts";
import type { FaultDoor } from "./fault-door.ts";
import type { LaneState } from "./lane-state.ts";
import type { Latencies } from "./latencies.ts";
import type { RamRegion } from "./ram.ts";

/**
 * What crosses a thread boundary: small plain objects. Page bytes never do; they stay in guest
 * memory and in the worker that sends or receives them.
 */

/** A channel's descriptors and where its sequence numbers stand. */
export interface ChannelPlace {
  readonly channel: number;
  readonly readFd: number;
  readonly writeFd: number;
  readonly readSequence: number;
  readonly writeSequence: number;
  /** See `DescriptorOptions`. */
  readonly isDeep?: boolean;
}

export interface SendBlock extends RamRegion {
  /** Wire page. */
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly pagesPerChunk: number;
  readonly dirty: DirtyWords;
  /**
   * A bit per page, as in `DirtyWords`: what was sent of a chunk when it was sent last. Until a fence
   * was answered, this may have to be sent again. Written by who sends the chunk.
   */
  readonly sent: Int32Array;
  /** By chunk: the channel that sent it last, which may have versions of its pages in its cache. */
  readonly senders: Int32Array;
  /** Tells its pages from those of other blocks; see `firstKeys`. */
  readonly firstKey: number;
}

/**
 * What is known of the pages of a block that is scanned. All threads share it, but what was sent is
 * written down by the one that owns a page's chunk, in plain words.
 */
export interface ScanTables {
  /**
   * By page, the low half of its hash and then the high one, each exclusive-or that of a zero page:
   * so zero memory, of which a guest has much, takes no memory here.
   */
  readonly hashes: Int32Array;
  /** A bit per page, as in `DirtyWords`: something else than zeros was sent. */
  readonly content: Int32Array;
  /** The same: a process has the page in its page table. Null where nobody looks. */
  readonly mapped: Int32Array | null;
}

/** Which pages of a chunk are scanned, besides those that are marked dirty. */
export type ScanPart =
  | "all"
  /** Those that are mapped or were sent with content: others are zero, unless proven otherwise. */
  | "likely"
  /** Those others. */
  | "rest";

/** Pages of a block, of 4 KiB, as a process has them in its address space. */
export interface MappedRegion {
  readonly pid: number;
  readonly address: number;
  readonly firstPage: number;
  readonly pages: number;
}

/** A file, whatever its name. */
export interface FileIdentity {
  readonly device: bigint;
  readonly inode: bigint;
}

/** What the threads of the source's pool are for. */
export interface SendSetup {
  readonly control: Control;
  readonly blocks: readonly SendBlock[];
  readonly hasChecksum: boolean;
  readonly channelTimeoutMs: number;
  /** For the answer to a fence: the destination must first apply all that is on its way. */
  readonly fenceTimeoutMs: number;
  /** For cached versions of pages, in each thread; 0 where no deltas are made. */
  readonly cacheBytes: number;
  /** Whether deltas are made without `auto` as well. */
  readonly xbzrle: boolean;
  readonly channels: number;
}

/**
 * What every thread is told before a migration and after it. `ready` is answered once it has rehearsed;
 * a bulk channel's thread ends that when word 0 of `wanted` is 1: a migration wants it; a lane's thread when its
 * guest goes over. `forget` is the last task of a migration: then it has nothing of it any more. If it serves
 * another one, `tidy` comes first.
 */
export type BetweenTask =
  | { readonly kind: "ready"; readonly wanted: Int32Array }
  | { readonly kind: "forget" }
  | { readonly kind: "tidy" };

/**
 * Tasks of a source's worker. `begin` is the first of a migration; `open` follows, and is the first again
 * after its channel was lost.
 */
export type SendTask =
  | BetweenTask
  | { readonly kind: "begin"; readonly setup: SendSetup }
  | { readonly kind: "open"; readonly place: ChannelPlace }
  /** From now on the blocks are scanned: what is sent of them is what differs from what was sent. */
  | { readonly kind: "scan"; readonly tables: ReadonlyMap<number, ScanTables> }
  /**
   * Finds out which pages of a block are mapped, for `words` words of the table from `firstWord` on.
   * Its result is how many pages of 4 KiB are, or -1 where it cannot tell and has marked all.
   */
  | {
      readonly kind: "look";
      readonly block: number;
      readonly file: FileIdentity;
      readonly regions: readonly MappedRegion[];
      readonly firstWord: number;
      readonly words: number;
    }
  /** Sends the dirty pages of the chunks, which rise. Bits whose pages did not go are put back. */
  | {
      readonly kind: "send";
      readonly block: number;
      readonly chunks: readonly number[];
      readonly round: number;
      /** Of a block that is scanned. */
      readonly part: ScanPart;
    }
  /** Returns when the destination has applied everything that was sent before. */
  | { readonly kind: "fence"; readonly number: number }
  /** Says that nothing follows. */
  | { readonly kind: "end" };

export interface ReceiveBlock extends RamRegion {
  /** Wire page. */
  readonly pageBytes: number;
  readonly pageCount: number;
  readonly isPristine: boolean;
  readonly received: Int32Array;
  /** By page: the generation of what lies there; see generation.ts. */
  readonly generations: Uint32Array;
}

export interface ReceiveSetup {
  readonly control: Control;
  readonly blocks: readonly ReceiveBlock[];
  readonly hasChecksum: boolean;
  readonly channelTimeoutMs: number;
  /** Where the guest may run before all its pages are there; its blocks are these. */
  readonly door?: FaultDoor;
}

/** What a lane's thread is for, at either end. */
export type LaneSetup =
  | {
      readonly side: "source";
      readonly send: SendSetup;
      readonly words: Int32Array;
      readonly served: Latencies;
    }
  | {
      readonly side: "destination";
      readonly receive: ReceiveSetup;
      readonly words: Int32Array;
      readonly state: LaneState;
      /** Which of how many it is: they share the seats. */
      readonly lane: number;
      readonly lanes: number;
    };

/** Tasks of a destination's worker: as at the source, and then it receives until END. */
export type ReceiveTask =
  | BetweenTask
  | { readonly kind: "begin"; readonly setup: ReceiveSetup }
  | { readonly kind: "receive"; readonly place: ChannelPlace };

/** Tasks of a lane's thread, at either end: as the others', and then it serves until its channel ends. */
export type LaneTask =
  | BetweenTask
  | { readonly kind: "begin"; readonly setup: LaneSetup }
  /** Learns what it is to do, until the guest goes over; see `lane-rehearsal.ts`. */
  | { readonly kind: "rehearse" }
  | { readonly kind: "serve"; readonly place: ChannelPlace };

/** What a task did: pages that it moved, and chunks that it left, at the end of its list. */
export interface TaskDone {
  readonly pages: number;
  readonly left?: number;
}

/** How a task ended. Failures are data: an error class would arrive as a plain `Error`. */
export type TaskReport =
  | ({ readonly state: "done" } & TaskDone)
  /** The stop word was set. Who set it knows why. */
  | { readonly state: "stopped" }
  | { readonly state: "failed"; readonly failure: Failure };
